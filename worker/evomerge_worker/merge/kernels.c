/* The inner loops of the merge methods that searches use most, one pass over memory each.
 *
 * A plain C library: it knows nothing of Python, allocates nothing and starts no threads. The caller (native.py) hands it
 * the addresses of whole tensors and calls it from as many threads as it likes, on different tensors.
 *
 * Everything is computed in float32, multiplications and additions rounded one by one (compile with -ffp-contract=off) and
 * in the order of formula.py, which says the same in torch: both give the same bits, and so does every instruction set.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__)
#define EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_CPU
#endif
#define INLINE static inline __attribute__((always_inline))

/* The place of the first byte that is 1 among eight that are 0 or 1. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define FIRST_BYTE(bytes) ((size_t)__builtin_ctzll(bytes) / 8)
#else
#error "written for little-endian machines"
#endif

enum { F32 = 0, BF16 = 1, F16 = 2 };             /* dtypes */
enum { ALL = 0, AT_LEAST = 1, DRAWN = 2 };       /* how a task vector is thinned out */
enum { BLOCK = 512, SOURCES = 16 };              /* SOURCES: at most so many task vectors */

typedef struct {
    const void *data;
    int32_t dtype;
} tensor_t;

typedef struct {
    tensor_t tensor;
    float factor;       /* times the thinned task vector */
    float weight;       /* what is divided by where its element takes part */
    int32_t thinning;
    float threshold;    /* AT_LEAST: magnitudes below are dropped, */
    int64_t ties;       /* and of those equal to it, all but so many, the first */
    uint32_t key[2];    /* DRAWN: which draws, */
    uint32_t limit;     /* and below what an element is kept, of 65,536 */
} delta_t;

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

/* Finite numbers only: NaN would come out as anything, and is told by `store` before. */
INLINE uint16_t to_bfloat(float value) {
    const uint32_t bits = bits_of(value);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

INLINE float load(const void *data, int dtype, size_t i) {
    switch (dtype) {
    case BF16: return float_of((uint32_t)((const uint16_t *)data)[i] << 16);
    case F16: return from_half(((const uint16_t *)data)[i]);
    default: return ((const float *)data)[i];
    }
}

/* One loop a dtype, so that each is vectorised: the statement sees the element as `x` and its place as `i`. */
#define LOOP(data, kind, count, ...)                                              \
    for (size_t i = 0; i < (count); i++) { const float x = load(data, kind, i); __VA_ARGS__; }
#define FOR_EACH(tensor, start, count, ...)                                         \
    do {                                                                                  \
        switch ((tensor).dtype) {                                                         \
        case BF16: { const uint16_t *at = (const uint16_t *)(tensor).data + (start); LOOP(at, BF16, count, __VA_ARGS__) break; } \
        case F16: { const uint16_t *at = (const uint16_t *)(tensor).data + (start); LOOP(at, F16, count, __VA_ARGS__) break; }   \
        default: { const float *at = (const float *)(tensor).data + (start); LOOP(at, F32, count, __VA_ARGS__) }                 \
        }                                                                                 \
    } while (0)

/* The magnitude, as bits, from which a number is none in a dtype: what rounds to infinity, infinity itself, NaN. */
INLINE uint32_t too_large(int dtype) { return dtype == BF16 ? 0x7f7f8000u : dtype == F16 ? 0x477ff000u : 0x7f800000u; }

/* Round and write a block. Returns whether an element is infinite or NaN. */
INLINE uint32_t store(const float *restrict block, size_t count, void *out, int dtype, size_t start) {
    uint32_t largest = 0;
    for (size_t i = 0; i < count; i++) {
        const uint32_t magnitude = bits_of(block[i]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    if (dtype == BF16) {
        uint16_t *restrict to = (uint16_t *)out + start;
        for (size_t i = 0; i < count; i++) to[i] = to_bfloat(block[i]);
    } else if (dtype == F16) {
        uint16_t *restrict to = (uint16_t *)out + start;
        for (size_t i = 0; i < count; i++) to[i] = to_half(block[i]);
    } else {
        memcpy((float *)out + start, block, count * sizeof(float));
    }
    return largest >= too_large(dtype);
}

/* Ask for the part of a stream that the block after the next one needs: several streams at once are too many for the
 * CPU's own guesses. */
INLINE void ask(const tensor_t *tensor, size_t start, size_t count) {
    const size_t width = tensor->dtype == F32 ? 4 : 2, from = (start + 2 * BLOCK) * width, to = from + BLOCK * width;
    const char *data = (const char *)tensor->data;
    for (size_t at = from; at < to && at < count * width; at += 64) __builtin_prefetch(data + at);
}

/* A block of the sum for bfloat16 throughout and a number of sources that the compiler knows. */
INLINE uint32_t sum_of(int sources, int divided, const tensor_t *tensors, const float *weights, size_t start, size_t n,
                       float divisor, uint16_t *restrict out) {
    const uint16_t *x[4];
    float w[4];
    uint32_t largest = 0;
    for (int s = 0; s < sources; s++) x[s] = (const uint16_t *)tensors[s].data + start, w[s] = weights[s];
    for (size_t i = 0; i < n; i++) {
        float total = w[0] * load(x[0], BF16, i);
        for (int s = 1; s < sources; s++) total += w[s] * load(x[s], BF16, i);
        if (divided) total /= divisor;
        const uint32_t magnitude = bits_of(total) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
        out[start + i] = to_bfloat(total);
    }
    return largest >= too_large(BF16);
}

/* The same for any dtypes and number. */
INLINE uint32_t sum_of_any(int sources, const tensor_t *tensors, const float *weights, size_t start, size_t n,
                           float divisor, void *out, int out_dtype) {
    float sum[BLOCK];
    const float first = weights[0];
    FOR_EACH(tensors[0], start, n, sum[i] = first * x);
    for (int s = 1; s < sources; s++) {
        const float weight = weights[s];
        FOR_EACH(tensors[s], start, n, sum[i] += weight * x);
    }
    if (divisor != 1.0f)
        for (size_t i = 0; i < n; i++) sum[i] /= divisor;
    return store(sum, n, out, out_dtype, start);
}

/* out = sum(weight_i * x_i) / divisor. Returns 0 if an element of it is infinite or NaN. */
EACH_CPU int evomerge_sum(size_t count, int32_t sources, const tensor_t *tensors, const float *weights, float divisor,
                          void *out, int32_t out_dtype) {
    uint32_t wrong = 0;
    int usual = out_dtype == BF16;
    for (int s = 0; s < sources; s++) usual &= tensors[s].dtype == BF16;
    for (size_t start = 0; start < count; start += BLOCK) {
        const size_t n = count - start < BLOCK ? count - start : BLOCK;
        for (int s = 0; s < sources; s++) ask(&tensors[s], start, count);
#define CASE(number)                                                                            \
    case number: wrong |= sum_of(number, 0, tensors, weights, start, n, divisor, out); break;     \
    case -number: wrong |= sum_of(number, 1, tensors, weights, start, n, divisor, out); break;
        switch (usual ? (divisor == 1.0f ? sources : -sources) : 0) {
            CASE(1)
            CASE(2)
            CASE(3)
            CASE(4)
        default: wrong |= sum_of_any(sources, tensors, weights, start, n, divisor, out, out_dtype);
        }
#undef CASE
    }
    return !wrong;
}

/* Draws of 16 bits for the elements [256 * group, 256 * group + 256): Threefry-2x32 with 13 rounds (Salmon et al. 2011),
 * the numbers of 64 counters, cut in two: low halves of the first words, high halves, then those of the second words. */
enum { GROUP = 256, COUNTERS = GROUP / 4 };

INLINE void draw(const uint32_t *key, uint64_t group, uint16_t *restrict draws) {
    static const int turns[] = {13, 15, 26, 6, 17, 29, 16, 24};
    const uint32_t keys[3] = {key[0], key[1], 0x1BD11BDAu ^ key[0] ^ key[1]};
    for (int l = 0; l < COUNTERS; l++) {
        const uint64_t counter = group * COUNTERS + (uint64_t)l;
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
        draws[l] = (uint16_t)a;
        draws[COUNTERS + l] = (uint16_t)(a >> 16);
        draws[2 * COUNTERS + l] = (uint16_t)b;
        draws[3 * COUNTERS + l] = (uint16_t)(b >> 16);
    }
}

/* A block of a task vector, thinned out and times its factor: what is dropped is zero. `ties` is how many elements equal
 * to the threshold may still stay; the tensor's blocks come in their order. */
INLINE void thinned(const delta_t *source, const float *restrict base, size_t start, size_t n, int64_t *ties,
                    float *restrict delta) {
    const float factor = source->factor;
    if (source->thinning == AT_LEAST) {
        const uint32_t threshold = bits_of(source->threshold), least = threshold + (*ties == 0);
        uint32_t equal = 0;
        FOR_EACH(source->tensor, start, n, {
            const uint32_t bits = bits_of(x - base[i]), magnitude = bits & 0x7fffffffu;
            equal += magnitude == threshold;
            delta[i] = factor * float_of(magnitude >= least ? bits : 0u);
        });
        if (*ties > 0 && (int64_t)equal > *ties)
            for (size_t i = 0; i < n; i++) {
                const float x = load(source->tensor.data, source->tensor.dtype, start + i);
                if ((bits_of(x - base[i]) & 0x7fffffffu) == threshold && (*ties)-- <= 0) delta[i] = factor * 0.0f;
            }
        else
            *ties -= *ties ? equal : 0;
        *ties = *ties < 0 ? 0 : *ties;
    } else if (source->thinning == DRAWN) {
        uint16_t draws[BLOCK];
        const uint16_t limit = (uint16_t)source->limit;
        for (size_t g = 0; g * GROUP < n; g++) draw(source->key, start / GROUP + g, draws + g * GROUP);
        FOR_EACH(source->tensor, start, n, delta[i] = factor * float_of(draws[i] < limit ? bits_of(x - base[i]) : 0u));
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

/* One element of the combined task vectors, whose number and `how` the compiler knows where they are usual. */
INLINE float combined(int sources, const votes_t *how, float delta[][BLOCK], const float *weights, size_t i) {
    float total = delta[0][i];
    for (int s = 1; s < sources; s++) total += delta[s][i];
    if (!how->consensus) return total;
    const uint32_t turned = total >= 0.0f ? 0u : 0x80000000u; /* turn all so that the majority is positive */
    float mixed = 0.0f, shares = 0.0f;
    for (int s = 0; s < sources; s++) {
        const float vote = float_of(bits_of(delta[s][i]) ^ turned);
        mixed += vote > 0.0f ? vote : 0.0f;
        shares += vote > 0.0f ? weights[s] : 0.0f;
    }
    if (how->normalize) mixed /= shares == 0.0f ? 1.0f : shares;
    return float_of(bits_of(mixed) ^ turned);
}

/* A block of the result in bfloat16, straight into its place. Returns whether an element is infinite or NaN. */
INLINE uint32_t voted(int sources, int consensus, int normalize, float delta[][BLOCK], const float *weights,
                      const float *restrict origin, float lambda, size_t n, uint16_t *restrict out) {
    const votes_t how = {consensus, normalize, 1.0f, lambda};
    uint32_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        const float result = lambda * combined(sources, &how, delta, weights, i) + origin[i];
        const uint32_t magnitude = bits_of(result) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
        out[i] = to_bfloat(result);
    }
    return largest >= too_large(BF16);
}

/* The same for any number of task vectors, dtype and divisor. */
INLINE uint32_t voted_any(int sources, const votes_t *how, float delta[][BLOCK], const float *weights,
                          const float *origin, size_t start, size_t n, void *out, int out_dtype) {
    float result[BLOCK];
    for (size_t i = 0; i < n; i++) {
        float total = combined(sources, how, delta, weights, i);
        if (how->divisor != 1.0f) total /= how->divisor;
        result[i] = how->lambda * total + origin[i];
    }
    return store(result, n, out, out_dtype, start);
}

/* out = base + lambda * (the combined task vectors, thinned out and times their factors) / divisor.
 * Returns 0 if an element is infinite or NaN. */
EACH_CPU int evomerge_votes(size_t count, int32_t sources, const delta_t *deltas, tensor_t base, votes_t how, void *out,
                            int32_t out_dtype) {
    uint32_t wrong = 0;
    float weights[SOURCES];
    int64_t ties[SOURCES];
    for (int s = 0; s < sources; s++) weights[s] = deltas[s].weight, ties[s] = deltas[s].ties;
    const int usual = out_dtype == BF16 && how.divisor == 1.0f;
    for (size_t start = 0; start < count; start += BLOCK) {
        const size_t n = count - start < BLOCK ? count - start : BLOCK;
        float origin[BLOCK], delta[SOURCES][BLOCK];
        uint16_t *to = (uint16_t *)out + start;
        ask(&base, start, count);
        for (int s = 0; s < sources; s++) ask(&deltas[s].tensor, start, count);
        FOR_EACH(base, start, n, origin[i] = x);
        for (int s = 0; s < sources; s++) thinned(&deltas[s], origin, start, n, &ties[s], delta[s]);
#define CASE(number)                                                                                                  \
    case number:                                                                                                      \
        if (!how.consensus) wrong |= voted(number, 0, 0, delta, weights, origin, how.lambda, n, to);                  \
        else if (how.normalize) wrong |= voted(number, 1, 1, delta, weights, origin, how.lambda, n, to);              \
        else wrong |= voted(number, 1, 0, delta, weights, origin, how.lambda, n, to);                                 \
        break;
        switch (usual ? sources : 0) {
            CASE(1)
            CASE(2)
            CASE(3)
            CASE(4)
        default: wrong |= voted_any(sources, &how, delta, weights, origin, start, n, out, out_dtype);
        }
#undef CASE
    }
    return !wrong;
}

/* kept[d] is the L1 norm of those elements of x - base whose draw has the upper 12 bits d: 4,096 places, set to zero. */
EACH_CPU void evomerge_norms(size_t count, tensor_t source, tensor_t base, const uint32_t *key, double *norms) {
    for (size_t start = 0; start < count; start += BLOCK) {
        const size_t n = count - start < BLOCK ? count - start : BLOCK;
        float delta[BLOCK];
        uint16_t draws[BLOCK];
        FOR_EACH(base, start, n, delta[i] = x);
        FOR_EACH(source, start, n, delta[i] = float_of(bits_of(x - delta[i]) & 0x7fffffffu));
        for (size_t g = 0; g * GROUP < n; g++) draw(key, start / GROUP + g, draws + g * GROUP);
        for (size_t i = 0; i < n; i++) norms[draws[i] >> 4] += delta[i];
    }
}

/* How many magnitudes of x - base there are of each `bits >> shift`: counts has 2**(31 - shift) places, set to zero. */
EACH_CPU void evomerge_histogram(size_t count, tensor_t source, tensor_t base, int32_t shift, uint32_t *counts) {
    for (size_t start = 0; start < count; start += BLOCK) {
        const size_t n = count - start < BLOCK ? count - start : BLOCK;
        float delta[BLOCK];
        uint32_t bins[BLOCK];
        FOR_EACH(base, start, n, delta[i] = x);
        FOR_EACH(source, start, n, delta[i] = x - delta[i]);
        for (size_t i = 0; i < n; i++) bins[i] = (bits_of(delta[i]) & 0x7fffffffu) >> shift;
        for (size_t i = 0; i < n; i++) counts[bins[i]]++;
    }
}

/* The different magnitudes of x - base, as bits, and how often each is there: a hash table of 2**size places (keys, and
 * counts that are set to zero; where the count stays zero is nothing). Returns 0 if they are more than three quarters. */
EACH_CPU int evomerge_distinct(size_t count, tensor_t source, tensor_t base, int32_t size, uint32_t *keys,
                               uint32_t *counts) {
    const uint32_t last = (1u << size) - 1;
    size_t room = (size_t)last / 4 * 3;
    for (size_t start = 0; start < count; start += BLOCK) {
        const size_t n = count - start < BLOCK ? count - start : BLOCK;
        float delta[BLOCK];
        uint32_t bits[BLOCK];
        FOR_EACH(base, start, n, delta[i] = x);
        FOR_EACH(source, start, n, bits[i] = bits_of(x - delta[i]) & 0x7fffffffu);
        for (size_t i = 0; i < n; i++) {
            uint32_t place = bits[i] * 0x9E3779B1u >> (32 - size);
            while (counts[place] && keys[place] != bits[i]) place = (place + 1) & last;
            if (!counts[place]++) {
                if (!room--) return 0;
                keys[place] = bits[i];
            }
        }
    }
    return 1;
}

/* The lower bits of the magnitudes of x_s - base in bin wanted[s], written to found[s], which has room for all of them. */
EACH_CPU void evomerge_collect(size_t count, int32_t sources, const tensor_t *tensors, tensor_t base, int32_t shift,
                               const uint32_t *wanted, uint16_t *const *found) {
    const uint32_t low = (1u << shift) - 1, high = 0x7fffffffu & ~low;
    size_t filled[SOURCES] = {0};
    for (size_t start = 0; start < count; start += BLOCK) {
        const size_t n = count - start < BLOCK ? count - start : BLOCK;
        float origin[BLOCK];
        ask(&base, start, count);
        for (int s = 0; s < sources; s++) ask(&tensors[s], start, count);
        FOR_EACH(base, start, n, origin[i] = x);
        for (int s = 0; s < sources; s++) {
            const uint32_t bin = wanted[s] << shift;
            uint8_t match[BLOCK];
            memset(match + n, 0, BLOCK - n);
            FOR_EACH(tensors[s], start, n, match[i] = (bits_of(x - origin[i]) & high) == bin);
            for (size_t at = 0; at < n; at += 8) { /* few match: look at eight at once */
                uint64_t left;
                memcpy(&left, match + at, sizeof left);
                for (; left; left &= left - 1) {
                    const size_t i = at + FIRST_BYTE(left);
                    const float x = load(tensors[s].data, tensors[s].dtype, start + i);
                    found[s][filled[s]++] = (uint16_t)(bits_of(x - origin[i]) & low);
                }
            }
        }
    }
}
