"""The side that works: task -> pull -> merge -> evaluate -> report. Knows nothing of genomes or pods."""
