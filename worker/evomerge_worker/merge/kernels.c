/* The inner loops of the merge methods that searches use most, one pass over memory each.
 *
 * A plain C library: it knows nothing of Python, allocates nothing and starts no threads. The caller (native.py) hands it
 * the addresses of whole tensors and calls it from as many threads as it likes.
 *
 * A block of a tensor is held in float32 with its even elements first, then the odd ones: a word of two 16-bit numbers
 * falls apart into the two halves by a shift and a mask, and comes together likewise. `place` says where an element is.
 *
 * Everything is computed in float32, multiplications and additions rounded one by one (compile with -ffp-contract=off) and
 * in the order of formula.py, which says the same in torch: both give the same bits, and so does every instruction set.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__clang__) && __GNUC__ >= 12
#define EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_CPU
#endif
#define INLINE static inline __attribute__((always_inline))

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "written for little-endian machines"
#endif

/* Raised whenever what is exported here changes: native.py uses no library of another one. */
const int32_t evomerge_interface = 7;

enum { F32 = 0, BF16 = 1, F16 = 2 };             /* dtypes */
enum { ALL = 0, AT_LEAST = 1, BETWEEN = 2, DRAWN = 3, CHOSEN = 4 }; /* how a task vector is thinned out */
enum { BLOCK = 512, HALF = BLOCK / 2, SOURCES = 16 }; /* SOURCES: at most so many task vectors */

typedef struct {
    const void *data;
    int32_t dtype;
} tensor_t;

typedef struct {
    tensor_t tensor;
    float factor;       /* times the thinned task vector */
    float weight;       /* what is divided by where its element takes part */
    int32_t thinning;
    float threshold;    /* AT_LEAST: magnitudes below are dropped, and of those equal to it, all but the first `ties`; */
    float high;         /* BETWEEN: also those above this one, of those equal to it, all but the first `ties`, */
    int64_t ties;
    int64_t skipped;    /* and of those equal to the threshold so many, the first */
    uint32_t key[2];    /* DRAWN: which draws, */
    uint32_t limit;     /* and below what an element is kept, of 65,536 */
    const uint8_t *chosen; /* CHOSEN: a bit an element, the first ones lowest, 1 for those that are kept */
} delta_t;

/* Of the elements equal to a threshold, what the blocks so far have left of delta_t's numbers. */
typedef struct {
    int64_t ties, skipped;
} left_t;

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Small numbers come out by the multiplication; infinity and NaN need their exponent set. */
INLINE float from_half(uint16_t half) {
    uint32_t bits = bits_of(float_of((uint32_t)(half & 0x7fff) << 13) * 0x1p112f);
    bits |= (half & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
    return float_of(bits | (uint32_t)(half & 0x8000) << 16);
}

INLINE uint16_t to_half(float value) {
    uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu;
    uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    uint32_t small = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u; /* the addition rounds to steps of 2**-24 */
    uint32_t usual = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    uint32_t half = magnitude >= 0x47800000u ? large : magnitude < 0x38800000u ? small : usual;
    return (uint16_t)(half | (bits >> 16 & 0x8000u));
}

/* The upper 16 bits are the bfloat16. Finite numbers only: NaN would come out as anything, and is told before. */
INLINE uint32_t rounded(float value) {
    const uint32_t bits = bits_of(value);
    return bits + 0x7fffu + (bits >> 16 & 1u);
}

INLINE uint32_t word_at(const uint16_t *words, size_t i) {
    uint32_t word;
    memcpy(&word, words + 2 * i, sizeof word);
    return word;
}

INLINE float load(const void *data, int dtype, size_t i) {
    switch (dtype) {
    case BF16: return float_of((uint32_t)((const uint16_t *)data)[i] << 16);
    case F16: return from_half(((const uint16_t *)data)[i]);
    default: return ((const float *)data)[i];
    }
}

INLINE size_t place(size_t element) { return element / 2 + element % 2 * HALF; }

/* Ask for what lies 4 KiB further on, a line at a time and spread over the work: several streams at once are too many for
 * the CPU's own guesses, and asked for in one go they are more than it can wait for. What is not there is not fetched, and
 * does no harm. */
enum { AHEAD = 4096, LINE = 64 };

INLINE void ask(const void *data, size_t bytes) {
    for (size_t at = 0; at < bytes; at += LINE) __builtin_prefetch((const void *)((uintptr_t)data + AHEAD + at));
}

INLINE void ask_of(tensor_t tensor, size_t first, size_t count) {
    if (tensor.dtype == F32) ask((const float *)tensor.data + first, count * sizeof(float));
    else ask((const uint16_t *)tensor.data + first, count * sizeof(uint16_t));
}

/* One loop a dtype, so that each is vectorised: the statement sees the element as `x` and its place in the block as `i`. */
#define LOOP(kind, count, low, high, ...)                                                 \
    for (size_t j = 0; j < (count) / 2; j++) {                                            \
        { const float x = low; const size_t i = j; __VA_ARGS__; }                         \
        { const float x = high; const size_t i = HALF + j; __VA_ARGS__; }                 \
    }                                                                                     \
    if ((count) % 2) { const float x = load(at, kind, (count) - 1); const size_t i = (count) / 2; __VA_ARGS__; }
#define LOWER(kind) load(at, kind, 2 * j)
#define UPPER(kind) load(at, kind, 2 * j + 1)
#define FOR_EACH(tensor, start, count, ...)                                               \
    do {                                                                                  \
        switch ((tensor).dtype) {                                                         \
        case BF16: {                                                                      \
            const uint16_t *at = (const uint16_t *)(tensor).data + (start);               \
            LOOP(BF16, count, float_of(word_at(at, j) << 16), float_of(word_at(at, j) & 0xffff0000u), __VA_ARGS__) \
            break;                                                                        \
        }                                                                                 \
        case F16: {                                                                       \
            const uint16_t *at = (const uint16_t *)(tensor).data + (start);               \
            LOOP(F16, count, LOWER(F16), UPPER(F16), __VA_ARGS__)                         \
            break;                                                                        \
        }                                                                                 \
        default: {                                                                        \
            const float *at = (const float *)(tensor).data + (start);                     \
            LOOP(F32, count, LOWER(F32), UPPER(F32), __VA_ARGS__)                         \
        }                                                                                 \
        }                                                                                 \
    } while (0)

/* The magnitude, as bits, from which a number is none in a dtype: what rounds to infinity, infinity itself, NaN. */
INLINE uint32_t too_large(int dtype) { return dtype == BF16 ? 0x7f7f8000u : dtype == F16 ? 0x477ff000u : 0x7f800000u; }

/* Results in bfloat16 are put together in a buffer and go to memory from there: of large tensors past the caches, which
 * need not fetch first what is overwritten as a whole. */
enum { LARGE = 1 << 20 };

INLINE int past_caches(size_t count, const void *out) { return count >= LARGE && (uintptr_t)out % 16 == 0; }

INLINE void put(const void *restrict words, size_t bytes, int past, void *to) {
#ifdef __SSE2__
    if (past) {
        const __m128i *from = words;
        for (size_t i = 0; i < bytes / sizeof *from; i++) _mm_stream_si128((__m128i *)to + i, _mm_loadu_si128(from + i));
        return;
    }
#endif
    memcpy(to, words, bytes);
}

/* Other threads see what went past the caches from here on. */
INLINE void settle(void) {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

/* Round and write a block, of which places without an element hold zero. Returns whether one is infinite or NaN. */
INLINE uint32_t store(const float *restrict block, size_t start, size_t n, int past, void *out, int dtype) {
    uint32_t largest = 0;
    for (size_t i = 0; i < BLOCK; i++) {
        const uint32_t magnitude = bits_of(block[i]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    if (dtype == BF16) {
        uint16_t words[BLOCK];
        for (size_t j = 0; j < HALF; j++) {
            const uint32_t word = rounded(block[j]) >> 16 | (rounded(block[HALF + j]) & 0xffff0000u);
            memcpy(words + 2 * j, &word, sizeof word);
        }
        put(words, n * sizeof *words, n == BLOCK && past, (uint16_t *)out + start);
    } else if (dtype == F16) {
        uint16_t *restrict to = (uint16_t *)out + start;
        for (size_t e = 0; e < n; e++) to[e] = to_half(block[place(e)]);
    } else {
        float *restrict to = (float *)out + start;
        for (size_t e = 0; e < n; e++) to[e] = block[place(e)];
    }
    return largest >= too_large(dtype);
}

enum { STEP = 16 };

/* The first elements of the sum, a multiple of two steps, for bfloat16 throughout and a number of sources that the
 * compiler knows. Returns whether one is infinite or NaN. */
INLINE uint32_t sum_of(int sources, const tensor_t *tensors, const float *weights, size_t elements, int past, void *out) {
    const uint16_t *x[4];
    float w[4];
    uint32_t largest[STEP] = {0}, wrong = 0;
    for (int s = 0; s < sources; s++) x[s] = tensors[s].data, w[s] = weights[s];
    for (size_t done = 0; done < elements; done += 2 * STEP) {
        uint32_t words[STEP];
        for (int s = 0; s < sources; s++) ask(x[s] + done, sizeof words);
        for (size_t i = 0; i < STEP; i++) {
            uint32_t word = word_at(x[0] + done, i);
            float low = w[0] * float_of(word << 16), high = w[0] * float_of(word & 0xffff0000u);
            for (int s = 1; s < sources; s++) {
                word = word_at(x[s] + done, i);
                low += w[s] * float_of(word << 16), high += w[s] * float_of(word & 0xffff0000u);
            }
            const uint32_t one = bits_of(low) & 0x7fffffffu, other = bits_of(high) & 0x7fffffffu;
            largest[i] = one > largest[i] ? one : largest[i];
            largest[i] = other > largest[i] ? other : largest[i];
            words[i] = rounded(low) >> 16 | (rounded(high) & 0xffff0000u);
        }
        put(words, sizeof words, past, (uint16_t *)out + done);
    }
    for (int i = 0; i < STEP; i++) wrong |= largest[i] >= too_large(BF16);
    return wrong;
}

/* The same for any dtypes, numbers of sources and of elements. */
INLINE uint32_t sum_of_any(int sources, const tensor_t *tensors, const float *weights, size_t start, size_t n,
                           int past, void *out, int out_dtype) {
    float sum[BLOCK];
    const float first = weights[0];
    if (n < BLOCK) memset(sum, 0, sizeof sum);
    FOR_EACH(tensors[0], start, n, sum[i] = first * x);
    for (int s = 1; s < sources; s++) {
        const float weight = weights[s];
        FOR_EACH(tensors[s], start, n, sum[i] += weight * x);
    }
    return store(sum, start, n, past, out, out_dtype);
}

/* out = sum(weight_i * x_i). Returns 0 if an element of it is infinite or NaN. */
EACH_CPU static int sum(size_t count, int32_t sources, const tensor_t *tensors, const float *weights, void *out,
                        int32_t out_dtype) {
    const size_t steps = count / (2 * STEP) * (2 * STEP);
    const int past = past_caches(count, out);
    size_t start = steps;
    uint32_t wrong = 0;
    int usual = out_dtype == BF16;
    for (int s = 0; s < sources; s++) usual &= tensors[s].dtype == BF16;
    switch (usual ? sources : 0) {
    case 1: wrong = sum_of(1, tensors, weights, steps, past, out); break;
    case 2: wrong = sum_of(2, tensors, weights, steps, past, out); break;
    case 3: wrong = sum_of(3, tensors, weights, steps, past, out); break;
    case 4: wrong = sum_of(4, tensors, weights, steps, past, out); break;
    default: start = 0;
    }
    for (; start < count; start += BLOCK) {
        const size_t n = count - start < BLOCK ? count - start : BLOCK;
        wrong |= sum_of_any(sources, tensors, weights, start, n, past, out, out_dtype);
    }
    settle();
    return !wrong;
}

/* Draws of 16 bits for the elements of a block: Threefry-2x32 with 13 rounds (Salmon et al. 2011). Elements come in
 * groups of 256, whose draws are the numbers of 64 counters, cut in two: low halves of the first words, high halves, then
 * those of the second words. */
enum { GROUP = 256, COUNTERS = GROUP / 4 };

INLINE void draw_some(const uint32_t *key, uint64_t first, uint32_t *restrict draws) {
    static const int turns[] = {13, 15, 26, 6, 17, 29, 16, 24};
    const uint32_t keys[3] = {key[0], key[1], 0x1BD11BDAu ^ key[0] ^ key[1]};
    for (int l = 0; l < COUNTERS / 2; l++) { /* every second one: even elements, or odd ones */
        const uint64_t counter = first + 2 * (uint64_t)l;
        uint32_t a = (uint32_t)counter + keys[0], b = (uint32_t)(counter >> 32) + keys[1];
#pragma GCC unroll 13
        for (int round = 0; round < 13; round++) {
            const int turn = turns[round % 8];
            a += b;
            b = (b << turn | b >> (32 - turn)) ^ a;
            if (round % 4 == 3) {
                const int step = round / 4 + 1;
                a += keys[step % 3];
                b += keys[(step + 1) % 3] + (uint32_t)step;
            }
        }
        draws[l] = a & 0xffffu;
        draws[COUNTERS / 2 + l] = a >> 16;
        draws[COUNTERS + l] = b & 0xffffu;
        draws[COUNTERS / 2 * 3 + l] = b >> 16;
    }
}

INLINE void draw(const uint32_t *key, size_t start, size_t n, uint32_t *restrict draws) {
    for (size_t g = 0; g * GROUP < n; g++) {
        const uint64_t first = (uint64_t)(start / GROUP + g) * COUNTERS;
        draw_some(key, first, draws + g * (GROUP / 2));
        draw_some(key, first + 1, draws + HALF + g * (GROUP / 2));
    }
}

/* Of a block's elements, whose magnitudes are given by their places, those equal to the threshold stay only if they are
 * among the first `ties`. */
static void drop_ties(const delta_t *source, const uint32_t *magnitudes, size_t n, left_t left, float *delta) {
    const uint32_t threshold = bits_of(source->threshold);
    for (size_t e = 0; e < n; e++)
        if (magnitudes[place(e)] == threshold && left.ties-- <= 0) delta[place(e)] = source->factor * 0.0f;
}

/* Those equal to the lower threshold stay but for the first `skipped`, those equal to the higher one if they are among
 * the first `ties`; where both are the same, an element counts for both. */
static void drop_ends(const delta_t *source, const uint32_t *magnitudes, size_t n, left_t left, float *delta) {
    const uint32_t low = bits_of(source->threshold), high = bits_of(source->high);
    for (size_t e = 0; e < n; e++) {
        const int first = magnitudes[place(e)] == low && left.skipped-- > 0;
        const int late = magnitudes[place(e)] == high && left.ties-- <= 0;
        if (first || late) delta[place(e)] = source->factor * 0.0f;
    }
}

/* The same as `thinned` for BETWEEN. Most blocks keep all elements that are equal to a threshold, or none. */
INLINE void thinned_between(const delta_t *source, const float *restrict base, size_t start, size_t n, left_t *left,
                    float *restrict delta) {
    const float factor = source->factor;
    const uint32_t low = bits_of(source->threshold), high = bits_of(source->high);
    uint32_t lows = 0, highs = 0, magnitudes[BLOCK];
    if (n < BLOCK) memset(magnitudes, 0xff, sizeof magnitudes); /* places without an element equal nothing */
    FOR_EACH(source->tensor, start, n, delta[i] = x - base[i]; magnitudes[i] = bits_of(delta[i]) & 0x7fffffffu);
    for (size_t i = 0; i < BLOCK; i++) lows += magnitudes[i] == low, highs += magnitudes[i] == high;
    const uint32_t from = low + (left->skipped > 0 && lows <= left->skipped);
    const uint32_t below = high + (left->ties > 0);
    for (size_t i = 0; i < BLOCK; i++)
        delta[i] = factor * float_of((magnitudes[i] >= from) & (magnitudes[i] < below) ? bits_of(delta[i]) : 0u);
    if ((left->skipped > 0 && lows > left->skipped) || (left->ties > 0 && highs > left->ties))
        drop_ends(source, magnitudes, n, *left, delta);
    left->skipped -= lows < left->skipped ? lows : left->skipped;
    left->ties -= highs < left->ties ? highs : left->ties;
}

/* A block of a task vector, thinned out and times its factor: what is dropped is zero. The tensor's blocks come in their
 * order, and `left` goes from one to the next. */
INLINE void thinned(const delta_t *source, const float *restrict base, size_t start, size_t n, left_t *left,
                    float *restrict delta) {
    const float factor = source->factor;
    if (source->thinning == AT_LEAST && left->ties == 0) {
        const uint32_t threshold = bits_of(source->threshold);
        FOR_EACH(source->tensor, start, n, {
            const uint32_t bits = bits_of(x - base[i]);
            delta[i] = factor * float_of((bits & 0x7fffffffu) > threshold ? bits : 0u);
        });
    } else if (source->thinning == AT_LEAST) {
        const uint32_t threshold = bits_of(source->threshold);
        uint32_t equal = 0, magnitudes[BLOCK];
        if (n < BLOCK) memset(magnitudes, 0xff, sizeof magnitudes); /* places without an element equal nothing */
        FOR_EACH(source->tensor, start, n, {
            const uint32_t bits = bits_of(x - base[i]);
            magnitudes[i] = bits & 0x7fffffffu;
            delta[i] = factor * float_of(magnitudes[i] >= threshold ? bits : 0u);
        });
        for (size_t i = 0; i < BLOCK; i++) equal += magnitudes[i] == threshold;
        if ((int64_t)equal > left->ties) drop_ties(source, magnitudes, n, *left, delta);
        left->ties = (int64_t)equal > left->ties ? 0 : left->ties - equal;
    } else if (source->thinning == BETWEEN) {
        thinned_between(source, base, start, n, left, delta);
    } else if (source->thinning == DRAWN) {
        uint32_t draws[BLOCK];
        const uint32_t limit = source->limit;
        draw(source->key, start, n, draws);
        FOR_EACH(source->tensor, start, n, delta[i] = factor * float_of(draws[i] < limit ? bits_of(x - base[i]) : 0u));
    } else if (source->thinning == CHOSEN) {
        const uint8_t *restrict chosen = source->chosen + start / 8;
        uint32_t kept[BLOCK];
        for (size_t j = 0; 2 * j < n; j++) {
            const uint32_t pair = (uint32_t)chosen[j / 4] >> 2 * (j % 4);
            kept[j] = -(pair & 1u), kept[HALF + j] = -(pair >> 1 & 1u);
        }
        FOR_EACH(source->tensor, start, n, delta[i] = factor * float_of(bits_of(x - base[i]) & kept[i]));
    } else {
        FOR_EACH(source->tensor, start, n, delta[i] = factor * (x - base[i]));
    }
}

typedef struct {
    int32_t consensus;  /* only those count in an element whose sign is that of the sum (zero counts as positive), */
    int32_t normalize;  /* and their weights are what is divided by */
    float divisor;      /* without a consensus: what is divided by */
    float lambda;
} votes_t;

/* One element of the combined task vectors, whose number the compiler knows where it is usual. */
INLINE float combined(int sources, int consensus, int normalize, float delta[][BLOCK], const float *weights, size_t i) {
    float total = delta[0][i];
    for (int s = 1; s < sources; s++) total += delta[s][i];
    if (!consensus) return total;
    const uint32_t turned = total >= 0.0f ? 0u : 0x80000000u; /* turn all so that the majority is positive */
    float mixed = 0.0f, shares = 0.0f;
    for (int s = 0; s < sources; s++) {
        const float vote = float_of(bits_of(delta[s][i]) ^ turned);
        mixed += vote > 0.0f ? vote : 0.0f;
        shares += vote > 0.0f ? weights[s] : 0.0f;
    }
    if (normalize) mixed /= shares == 0.0f ? 1.0f : shares;
    return float_of(bits_of(mixed) ^ turned);
}

/* A block of the result. */
INLINE void voted(int sources, int consensus, int normalize, float delta[][BLOCK], const float *weights,
                  const float *restrict origin, float divisor, float lambda, const delta_t *deltas, tensor_t base,
                  size_t start, float *restrict result) {
    for (size_t done = 0; done < BLOCK; done += 2 * STEP) {
        ask_of(base, start + done, 2 * STEP);
        for (int s = 0; s < sources; s++) ask_of(deltas[s].tensor, start + done, 2 * STEP);
        for (size_t i = done; i < done + 2 * STEP; i++) {
            float total = combined(sources, consensus, normalize, delta, weights, i);
            if (divisor != 1.0f) total /= divisor;
            result[i] = lambda * total + origin[i];
        }
    }
}

/* out = base + lambda * (the combined task vectors, thinned out and times their factors) / divisor.
 * Returns 0 if an element is infinite or NaN. */
EACH_CPU static int votes(size_t count, int32_t sources, const delta_t *deltas, tensor_t base, votes_t how, void *out,
                          int32_t out_dtype) {
    const int past = past_caches(count, out);
    uint32_t wrong = 0;
    float weights[SOURCES];
    left_t left[SOURCES];
    for (int s = 0; s < sources; s++) weights[s] = deltas[s].weight, left[s] = (left_t){deltas[s].ties, deltas[s].skipped};
    for (size_t start = 0; start < count; start += BLOCK) {
        const size_t n = count - start < BLOCK ? count - start : BLOCK;
        float origin[BLOCK], delta[SOURCES][BLOCK], result[BLOCK];
        if (n < BLOCK) memset(origin, 0, sizeof origin), memset(delta, 0, sizeof delta);
        FOR_EACH(base, start, n, origin[i] = x);
        for (int s = 0; s < sources; s++) thinned(&deltas[s], origin, start, n, &left[s], delta[s]);
#define RESULT(number, consensus, normalize, divisor)                                                                    \
    voted(number, consensus, normalize, delta, weights, origin, divisor, how.lambda, deltas, base, start, result)
#define VOTED(number, divisor)                                                                                           \
    if (!how.consensus) RESULT(number, 0, 0, divisor);                                                                   \
    else if (how.normalize) RESULT(number, 1, 1, divisor);                                                               \
    else RESULT(number, 1, 0, divisor);
        switch (how.divisor == 1.0f ? sources : 0) {
        case 1: VOTED(1, 1.0f) break;
        case 2: VOTED(2, 1.0f) break;
        case 3: VOTED(3, 1.0f) break;
        case 4: VOTED(4, 1.0f) break;
        default: VOTED(sources, how.divisor)
        }
#undef VOTED
#undef RESULT
        wrong |= store(result, start, n, past, out, out_dtype);
    }
    settle();
    return !wrong;
}

/* A formula, its operands and where its result goes: a sum where there are weights, else votes. */
typedef struct {
    size_t count;
    int32_t sources, out_dtype;
    void *out;
    const void *operands;   /* tensor_t for a sum, delta_t for votes */
    const float *weights;
    tensor_t base;
    votes_t votes;
} job_t;

/* All from *next on, which starts at 0 and is shared by all threads that are called with the same jobs: each takes the
 * next one that is left. So they stay near each other in memory: page tables of a virtual machine are slow to read, and
 * what one thread has read helps the other. finite[i] becomes 0 if an element of the result is infinite or NaN, else 1. */
void evomerge_run(size_t jobs, const job_t *all, size_t *next, int32_t *finite) {
    for (size_t i; (i = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < jobs;) {
        const job_t *job = &all[i];
        finite[i] = job->weights
                        ? sum(job->count, job->sources, job->operands, job->weights, job->out, job->out_dtype)
                        : votes(job->count, job->sources, job->operands, job->base, job->votes, job->out, job->out_dtype);
    }
}

/* kept[d] is the L1 norm of those elements of x - base whose draw has the upper 12 bits d: 4,096 places, set to zero. */
EACH_CPU void evomerge_norms(size_t count, tensor_t source, tensor_t base, const uint32_t *key, double *norms) {
    for (size_t start = 0; start < count; start += BLOCK) {
        const size_t n = count - start < BLOCK ? count - start : BLOCK;
        float delta[BLOCK];
        uint32_t draws[BLOCK];
        FOR_EACH(base, start, n, delta[i] = x);
        FOR_EACH(source, start, n, delta[i] = float_of(bits_of(x - delta[i]) & 0x7fffffffu));
        draw(key, start, n, draws);
        for (size_t e = 0; e < n; e++) norms[draws[place(e)] >> 4] += delta[place(e)];
    }
}

/* sums[0] and [1] are the L1 norms of a task vector as it is and thinned out, times its factor, in float64: each in 32
 * parts, of the elements whose number modulo 32 is the same, added up in their order. All are set to zero. */
EACH_CPU void evomerge_thinned_norms(size_t count, const delta_t *source, tensor_t base, double sums[2][32]) {
    left_t left = {source->ties, source->skipped};
    for (size_t start = 0; start < count; start += BLOCK) {
        const size_t n = count - start < BLOCK ? count - start : BLOCK;
        float origin[BLOCK], whole[BLOCK], rest[BLOCK];
        if (n < BLOCK) memset(origin, 0, sizeof origin), memset(whole, 0, sizeof whole), memset(rest, 0, sizeof rest);
        FOR_EACH(base, start, n, origin[i] = x);
        FOR_EACH(source->tensor, start, n, whole[i] = source->factor * (x - origin[i]));
        thinned(source, origin, start, n, &left, rest);
        for (size_t half = 0; half < 2; half++)
            for (size_t at = half * HALF; at < (half + 1) * HALF; at += 16)
                for (size_t l = 0; l < 16; l++) {
                    sums[0][half * 16 + l] += __builtin_fabsf(whole[at + l]);
                    sums[1][half * 16 + l] += __builtin_fabsf(rest[at + l]);
                }
    }
}

/* sums[0], [1] and [2] are those of x * x, y * y and x * y, in float64, where no product is rounded: each in 32 parts, of
 * the elements whose number modulo 32 is the same, added up in their order. All are set to zero. */
EACH_CPU void evomerge_products(size_t count, tensor_t one, tensor_t other, double sums[3][32]) {
    for (size_t start = 0; start < count; start += BLOCK) {
        const size_t n = count - start < BLOCK ? count - start : BLOCK;
        float first[BLOCK], second[BLOCK];
        if (n < BLOCK) memset(first, 0, sizeof first), memset(second, 0, sizeof second);
        FOR_EACH(one, start, n, first[i] = x);
        FOR_EACH(other, start, n, second[i] = x);
        for (size_t half = 0; half < 2; half++)
            for (size_t at = half * HALF; at < (half + 1) * HALF; at += 16)
                for (size_t l = 0; l < 16; l++) {
                    const double x = first[at + l], y = second[at + l];
                    sums[0][half * 16 + l] += x * x;
                    sums[1][half * 16 + l] += y * y;
                    sums[2][half * 16 + l] += x * y;
                }
    }
}

/* How many magnitudes of x - base there are of each `bits >> shift`: counts has 2**(31 - shift) places, set to zero. */
EACH_CPU void evomerge_histogram(size_t count, tensor_t source, tensor_t base, int32_t shift, uint32_t *counts) {
    for (size_t start = 0; start < count; start += BLOCK) {
        const size_t n = count - start < BLOCK ? count - start : BLOCK;
        float delta[BLOCK];
        uint32_t bins[BLOCK];
        FOR_EACH(base, start, n, delta[i] = x);
        FOR_EACH(source, start, n, bins[i] = (bits_of(x - delta[i]) & 0x7fffffffu) >> shift);
        for (size_t e = 0; e < n; e++) counts[bins[place(e)]]++;
    }
}

/* The different magnitudes of x - base, as bits, and how often each is there: a hash table of 2**size places, set to zero,
 * that hold a magnitude in their lower half and in the upper one the count, zero where nothing is. Returns 0 if they are
 * more than three quarters. */
EACH_CPU int evomerge_distinct(size_t count, tensor_t source, tensor_t base, int32_t size, uint64_t *table) {
    const uint32_t last = (1u << size) - 1;
    size_t room = (size_t)last / 4 * 3;
    for (size_t start = 0; start < count; start += BLOCK) {
        const size_t n = count - start < BLOCK ? count - start : BLOCK;
        float delta[BLOCK];
        uint32_t bits[BLOCK];
        FOR_EACH(base, start, n, delta[i] = x);
        FOR_EACH(source, start, n, bits[i] = bits_of(x - delta[i]) & 0x7fffffffu);
        for (size_t e = 0; e < n; e++) {
            const uint32_t key = bits[place(e)];
            uint32_t at = key * 0x9E3779B1u >> (32 - size);
            while (table[at] && (uint32_t)table[at] != key) at = (at + 1) & last;
            if (!table[at] && !room--) return 0;
            table[at] = (table[at] | key) + (UINT64_C(1) << 32);
        }
    }
    return 1;
}

/* Eight bytes that are 0 or 1, as eight bits: the product puts them side by side in its highest byte. */
INLINE uint64_t bits_of_bytes(const uint8_t *bytes) {
    uint64_t word;
    memcpy(&word, bytes, sizeof word);
    return word * UINT64_C(0x0102040810204080) >> 56;
}

/* The magnitudes of x_s - base, as bits, that are at least low[s] and below high[s]: written to found[s] one after the
 * other while there is room[s] for them, and all counted in within[s]; above[s] counts those that are larger. */
EACH_CPU void evomerge_between(size_t count, int32_t sources, const tensor_t *tensors, tensor_t base, const uint32_t *low,
                               const uint32_t *high, uint32_t *const *found, const size_t *room, size_t *within,
                               size_t *above) {
    for (int s = 0; s < sources; s++) within[s] = above[s] = 0;
    for (size_t start = 0; start < count; start += BLOCK) {
        const size_t n = count - start < BLOCK ? count - start : BLOCK;
        float origin[BLOCK];
        FOR_EACH(base, start, n, origin[i] = x);
        for (int s = 0; s < sources; s++) {
            uint32_t bits[BLOCK], larger = 0;
            uint8_t match[BLOCK];
            const uint32_t least = low[s], beyond = high[s];
            if (n < BLOCK) memset(bits, 0, sizeof bits);
            FOR_EACH(tensors[s], start, n, bits[i] = bits_of(x - origin[i]) & 0x7fffffffu);
            for (size_t i = 0; i < BLOCK; i++) larger += bits[i] >= beyond;
            above[s] += larger;
            for (size_t i = 0; i < BLOCK; i++) match[i] = bits[i] - least < beyond - least;
            if (n < BLOCK)
                for (size_t e = n; e < BLOCK; e++) match[place(e)] = 0; /* a place without an element */
            for (size_t at = 0; at < BLOCK; at += 64) { /* few match: look at 64 at once */
                uint64_t left = 0;
                for (size_t b = 0; b < 8; b++) left |= bits_of_bytes(match + at + 8 * b) << 8 * b;
                for (; left; left &= left - 1, within[s]++)
                    if (within[s] < room[s]) found[s][within[s]] = bits[at + (size_t)__builtin_ctzll(left)];
            }
        }
    }
}
