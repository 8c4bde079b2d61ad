/* What every kernel stands on: vectors of LANES floats through compiler vector extensions, no intrinsics.
 *
 * V is a vector of floats, I of int32 (a comparison gives 0 or -1 per lane), N of uint32. With LANES 1 they are plain
 * numbers and the same kernels are ISO C99. Arithmetic operators work on both. Loads and stores need no alignment.
 * Every function here propagates NaN as PyTorch does; the exponential ones are within 2 units in the last place. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifndef LANES
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#elif defined(__riscv_v_min_vlen) && __riscv_v_min_vlen <= 512
#define LANES (__riscv_v_min_vlen / 32)
#elif defined(__SSE2__) || defined(__ARM_NEON) || defined(__ALTIVEC__) || defined(__VX__) || defined(__wasm_simd128__)
#define LANES 4
#else /* no vector unit: what the compiler makes of vectors there is slower than plain numbers */
#define LANES 1
#endif
#endif

#if LANES > 1
typedef float V __attribute__((vector_size(4 * LANES)));
typedef int32_t I __attribute__((vector_size(4 * LANES)));
typedef uint32_t N __attribute__((vector_size(4 * LANES)));
#define TRUTH(c) (c)
#else
typedef float V;
typedef int32_t I;
typedef uint32_t N;
#define TRUTH(c) (-(c))
#endif

#ifdef __GNUC__
#define INLINE static inline __attribute__((always_inline, unused))
#define PREFETCH(p) __builtin_prefetch(p) /* a hint: any address will do */
#define PREFETCH_OWN(p) __builtin_prefetch(p, 1) /* to be written */
#define PREFETCH_FAR(p) __builtin_prefetch(p, 0, 2) /* into the second cache */
#else
#define INLINE static inline
#define PREFETCH(p) ((void)(p))
#define PREFETCH_OWN(p) ((void)(p))
#define PREFETCH_FAR(p) ((void)(p))
#endif
#ifndef LOCAL
#define LOCAL static
#endif

/* Names of one instance: with SYMBOL k7, NAME(tile) is k7_tile. */
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(part) JOIN(SYMBOL, part)

/* A row is read and written in whole steps of 16 floats, whatever the machine's vector. */
#define STEPS(n) (((n) + 15) / 16 * 16)
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

struct args {
    const float *x;       /* rows of inputs, at position 0 of channel 0 */
    float *y;             /* rows of outputs, likewise */
    const float *r;       /* residual rows, where RESIDUAL */
    const void *w;        /* packed weights, 64-byte aligned */
    const float *b;       /* one bias per output */
    const int32_t *mask;  /* per position: -1 inside the map, 0 in its padding */
    long band;            /* which band of the map's lines y is; 0 where it is all of them */
};

INLINE V v_set(float s) { return s - (V){0}; }
INLINE V v_load(const float *p) { V v; memcpy(&v, p, sizeof v); return v; }
INLINE void v_store(float *p, V v) { memcpy(p, &v, sizeof v); }
INLINE V v_load_n(const float *p, int n) { V v = v_set(0.0f); memcpy(&v, p, 4 * (size_t)n); return v; }
INLINE void v_store_n(float *p, V v, int n) { memcpy(p, &v, 4 * (size_t)n); }
INLINE I i_load(const int32_t *p) { I i; memcpy(&i, p, sizeof i); return i; }
INLINE I v_bits(V v) { I i; memcpy(&i, &v, sizeof i); return i; }
INLINE V v_from_bits(I i) { V v; memcpy(&v, &i, sizeof v); return v; }

INLINE V v_and(V v, I mask) { return v_from_bits(v_bits(v) & mask); }
INLINE V v_where(I c, V a, V b) { return v_from_bits((v_bits(a) & c) | (v_bits(b) & ~c)); }
INLINE I v_less(V a, V b) { return TRUTH(a < b); }
INLINE I v_nan(V a) { return TRUTH(a != a); }
INLINE V v_abs(V v) { return v_and(v, v_bits(v_set(0.0f)) + 0x7fffffff); }
INLINE V v_copysign(V v, V sign) { return v_from_bits(v_bits(v_abs(v)) | (v_bits(sign) ^ v_bits(v_abs(sign)))); }
INLINE V v_max(V a, V b) { return v_where(v_less(b, a) | v_nan(a), a, b); }
INLINE V v_min(V a, V b) { return v_where(v_less(a, b) | v_nan(a), a, b); }
INLINE V v_relu(V v) { return v_and(v, ~v_less(v, v_set(0.0f))); }
INLINE V v_clamp(V v, V lo, V hi)
{
    v = v_where(v_less(v, lo), lo, v);
    return v_where(v_less(hi, v), hi, v);
}
INLINE V v_leaky_relu(V v, V slope) { return v_where(v_less(v, v_set(0.0f)), v * slope, v); }
INLINE V v_hardsigmoid(V v) { return v_clamp(v + 3.0f, v_set(0.0f), v_set(6.0f)) * (1.0f / 6.0f); }
INLINE V v_hardswish(V v) { return v * v_hardsigmoid(v); }

/* Lanes 0, 2, 4, ... of a and then of b; and lanes 1, 3, 5, ... */
#if LANES == 16
#define EVERY_SECOND(a, b, f) __builtin_shufflevector(a, b, f, f + 2, f + 4, f + 6, f + 8, f + 10, f + 12, f + 14, \
                                                      f + 16, f + 18, f + 20, f + 22, f + 24, f + 26, f + 28, f + 30)
#elif LANES == 8
#define EVERY_SECOND(a, b, f) __builtin_shufflevector(a, b, f, f + 2, f + 4, f + 6, f + 8, f + 10, f + 12, f + 14)
#elif LANES == 4
#define EVERY_SECOND(a, b, f) __builtin_shufflevector(a, b, f, f + 2, f + 4, f + 6)
#elif LANES == 2
#define EVERY_SECOND(a, b, f) __builtin_shufflevector(a, b, f, f + 2)
#else
#define EVERY_SECOND(a, b, f) ((void)(a), (void)(b), f ? b : a)
#endif
INLINE V v_even(V a, V b) { return EVERY_SECOND(a, b, 0); }
INLINE V v_odd(V a, V b) { return EVERY_SECOND(a, b, 1); }

/* Lanes 0, step, 2 step, ... of what lies at p. */
INLINE V v_strided(const float *p, int step)
{
    if (step == 1) return v_load(p);
    if (step == 2) return v_even(v_load(p), v_load(p + LANES));
    float v[LANES];
    for (int i = 0; i < LANES; i++) v[i] = p[i * step];
    return v_load(v);
}

/* LANES vectors of LANES floats: lane j of vector i becomes lane i of vector j, by blocks of 1, 2, 4, ... lanes. */
INLINE void v_transpose(V *v)
{
#if LANES > 1
#if LANES == 16
#define LANES_OF(f, s) f(0, s), f(1, s), f(2, s), f(3, s), f(4, s), f(5, s), f(6, s), f(7, s), \
                       f(8, s), f(9, s), f(10, s), f(11, s), f(12, s), f(13, s), f(14, s), f(15, s)
#elif LANES == 8
#define LANES_OF(f, s) f(0, s), f(1, s), f(2, s), f(3, s), f(4, s), f(5, s), f(6, s), f(7, s)
#elif LANES == 4
#define LANES_OF(f, s) f(0, s), f(1, s), f(2, s), f(3, s)
#else
#define LANES_OF(f, s) f(0, s), f(1, s)
#endif
#define UPPER(l, s) (l & s ? LANES + (l ^ s) : l)
#define LOWER(l, s) (l & s ? LANES + l : l ^ s)
#define EXCHANGE(s) \
    for (int i = 0; i < LANES; i++) \
        if (!(i & s)) { \
            V a = v[i], b = v[i | s]; \
            v[i] = __builtin_shufflevector(a, b, LANES_OF(UPPER, s)); \
            v[i | s] = __builtin_shufflevector(a, b, LANES_OF(LOWER, s)); \
        }
    EXCHANGE(1)
#if LANES >= 4
    EXCHANGE(2)
#endif
#if LANES >= 8
    EXCHANGE(4)
#endif
#if LANES >= 16
    EXCHANGE(8)
#endif
#undef LANES_OF
#undef UPPER
#undef LOWER
#undef EXCHANGE
#else
    (void)v;
#endif
}

INLINE V v_sqrt(V v)
{
#if LANES > 1
    for (int i = 0; i < LANES; i++) v[i] = sqrtf(v[i]);
    return v;
#else
    return sqrtf(v);
#endif
}

INLINE V v_pow(V v, V power)
{
#if LANES > 1
    for (int i = 0; i < LANES; i++) v[i] = powf(v[i], power[i]);
    return v;
#else
    return powf(v, power);
#endif
}

/* 2^n for n in [-126, 128]. */
INLINE V v_power_of_two(I n) { return v_from_bits((I)(((N)n + 127u) << 23)); }

/* x = n ln 2 + r with |r| <= ln 2 / 2, and e^r - 1. */
INLINE V v_reduce_exp(V x, I *n)
{
    const V round = v_set(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer, which the low bits then hold */
    V shifted = x * 1.44269504f + round, whole = shifted - round;
    V r = x - whole * 0.693359375f + whole * 2.12194440e-4f, q;
    *n = (I)((N)v_bits(shifted) - (N)v_bits(round));
    q = r * 0.000199150311f + 0.00139420599f;
    q = q * r + 0.00833327172f;
    q = q * r + 0.0416663419f;
    q = q * r + 0.166666668f;
    q = q * r + 0.5f;
    return q * (r * r) + r;
}
INLINE V v_exp(V x)
{
    I n;
    V q = v_reduce_exp(v_clamp(x, v_set(-105.0f), v_set(89.0f)), &n);
    I half = n >> 1; /* in two factors: one alone would leave the range of exponents near both ends */
    return (q + 1.0f) * v_power_of_two(half) * v_power_of_two(n - half);
}
INLINE V v_expm1(V x)
{
    I n;
    V q = v_reduce_exp(v_clamp(x, v_set(-80.0f), v_set(88.0f)), &n), s = v_power_of_two(n);
    return s * q + (s - 1.0f);
}
INLINE V v_log(V x)
{
    const float tiny = 1.17549435e-38f, sqrt_half = 0.707106781f;
    const V infinity = v_set(INFINITY);
    I small = v_less(x, v_set(tiny));
    V scaled = v_where(small, x * 8388608.0f, x); /* a subnormal has no exponent of its own */
    N base = (N)v_bits(v_set(sqrt_half)), i = (N)v_bits(scaled) - base;
    I exponent = ((I)i >> 23) - (small & 23);
    V f = v_from_bits((I)((i & 0x7fffffu) + base)) - 1.0f, p, y, e;
#if LANES > 1
    e = __builtin_convertvector(exponent, V);
#else
    e = (V)exponent;
#endif
    p = f * -0.0785954578f + 0.128816224f;
    p = p * f - 0.131287677f;
    p = p * f + 0.141811961f;
    p = p * f - 0.166245531f;
    p = p * f + 0.200022861f;
    p = p * f - 0.250008104f;
    p = p * f + 0.333333167f;
    y = p * (f * f * f) - 0.5f * (f * f) - e * 2.12194440e-4f;
    y = y + f + e * 0.693359375f;
    y = v_where(v_less(x, v_set(0.0f)) | v_nan(x), v_set(NAN), y);
    y = v_where(TRUTH(x == 0.0f), -infinity, y);
    return v_where(TRUTH(x == infinity), x, y);
}
INLINE V v_log1p(V x) /* x >= 0 */
{
    V u = x + 1.0f, y = v_log(u) + (x - (u - 1.0f)) / u;
    return v_where(v_less(v_set(1e30f), x), v_log(x), y);
}
INLINE V v_sigmoid(V x) { return 1.0f / (v_exp(-x) + 1.0f); }
INLINE V v_silu(V x) { return x / (v_exp(-x) + 1.0f); }
INLINE V v_tanh(V x)
{
    V a = v_abs(x), e = v_expm1(2.0f * v_where(v_less(v_set(10.0f), a), v_set(10.0f), a));
    return v_copysign(e / (e + 2.0f), x);
}
INLINE V v_erf(V x)
{
    V s = x * x, a = v_abs(x), p, q;
    a = v_where(v_less(v_set(3.95f), a), v_set(3.95f), a);
    p = s * -0.000609048232f + 0.00501199026f; /* |x| < 0.9: x + x P(x^2) */
    p = p * s - 0.0267789313f;
    p = p * s + 0.112821416f;
    p = p * s - 0.376125234f;
    p = p * s + 0.128379154f;
    q = a * -0.000214595867f + 0.00321998195f; /* beyond: 1 - e^(-x Q(x)) */
    q = q * a - 0.0229060503f;
    q = q * a + 0.105286882f;
    q = q * a + 0.635699349f;
    q = q * a + 1.12851996f;
    return v_where(v_less(a, v_set(0.9f)), p * x + x, v_copysign(1.0f - v_exp(-a * q), x));
}
INLINE V v_gelu(V x) { return 0.5f * x * (1.0f + v_erf(x * 0.707106781f)); }
INLINE V v_gelu_tanh(V x) { return 0.5f * x * (1.0f + v_tanh(0.797884561f * (x + 0.044715f * x * x * x))); }
INLINE V v_elu(V x, V alpha) { return v_where(v_less(x, v_set(0.0f)), alpha * v_expm1(x), x); }
INLINE V v_softplus(V x, V beta, V threshold)
{
    return v_where(v_less(threshold, x * beta), x, v_log1p(v_exp(x * beta)) / beta);
}
INLINE V v_mish(V x) { return x * v_tanh(v_softplus(x, v_set(1.0f), v_set(20.0f))); }
