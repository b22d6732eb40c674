"""Which licence a merge may name on the hub, and the notice that goes with one that the hub does not know."""

import re
from dataclasses import dataclass

from evomerge_contract.task import Source

# fmt: off
HUB_LICENCES = frozenset(
    {
        "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0", "bigcode-openrail-m",
        "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause",
        "bsd-3-clause-clear", "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
        "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0",
        "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "creativeml-openrail-m",
        "deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2",
        "fair-noncommercial-research-license", "gemma", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "grok2-community",
        "h-research", "intel-research", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2", "llama3",
        "llama3.1", "llama3.2", "llama3.3", "llama4", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl",
        "odc-by", "ofl-1.1", "openmdw-1.0", "openmdw-1.1", "openrail", "openrail++", "osl-3.0", "pddl",
        "postgresql", "unlicense", "wtfpl", "zlib",
    }
)
# fmt: on
"""The identifiers a model card may use (https://huggingface.co/docs/hub/repositories-licenses, August 2026), without
`other` and `unknown`, which say nothing by themselves."""

SEVERAL = "licences-of-the-sources"
NOTICE_FILE = "LICENSE"


@dataclass(frozen=True)
class Licence:
    """The fields `license`, `license_name` and `license_link` of a model card."""

    license: str | None
    license_name: str | None = None
    license_link: str | None = None


def licence_of(sources: list[Source]) -> Licence:
    """The licence of a merge of `sources`: theirs where all state the same one, none where none states any.

    Otherwise, and where the hub does not know theirs, it is `other` with a name and a link to the notice (the hub's
    rule): that a source is silent does not make it free.
    """
    stated = {s.license.strip().lower() for s in sources if s.license}
    if not stated:
        return Licence(None)
    if len(stated) == 1 and all(s.license for s in sources):
        (only,) = stated
        if only in HUB_LICENCES:
            return Licence(only)
        if only not in ("other", "unknown"):
            return Licence("other", _slug(only), NOTICE_FILE)
    return Licence("other", SEVERAL, NOTICE_FILE)


def licence_notice(sources: list[Source]) -> str | None:
    """The text of the file `LICENSE` that a card with `license: other` links to; None where it needs none."""
    if licence_of(sources).license_link is None:
        return None
    lines = [f"- {s.name}: {s.license or 'licence not stated'}" for s in sources]
    return (
        "This model is a merge of the models below. What may be done with it is what the licences of all of them "
        "allow;\nsee each model's own page or files for the text.\n\n" + "\n".join(lines) + "\n"
    )


def _slug(name: str) -> str:
    """A licence's name in the letters that the hub takes for `license_name`."""
    return re.sub(r"[^a-z0-9.]+", "-", name).strip("-.") or SEVERAL
