/* ---
family: depthwise_strided
op: depthwise_strided
format: taps
dtype: f32
doc: depthwise with a stride, line by line, lanes picked from the unsplit input whose zero padding is in place.
with: lines.h
macros: O G KH KW SY SX DY DX PY PX N H W OH OW XROW XPITCH XSTACK XAT YROW YPITCH YSTACK RROW CLEAR RESIDUAL EPILOGUE
tiles:
  - {NV: 4, BANDS: 1}
  - {NV: 4, BANDS: 2}
--- */
/* Group g has one channel and O outputs (the multiplier). Packed weights are KH x KW numbers for each output. With a stride of two,
 * neighbouring taps are the even and odd lanes of the same vectors. */
#define PAIR(kx) (SX == 2 && DX == 1 && (kx) + 1 < KW)

INLINE void NAME(line)(const struct args *a, long c, long n, long oy)
{
    const float *w = (const float *)a->w + c * (KH * KW);
    const float *x = a->x + c / O * XROW + n * XSTACK + XAT(oy, a->band) - PY * XPITCH - PX;
    for (int first = 0; first < LINE_VECTORS; first += NV) {
        const int count = MIN(NV, LINE_VECTORS - first);
        V sum[NV];
        for (int j = 0; j < NV; j++) sum[j] = v_set(0.0f);
        for (int ky = 0; ky < KH; ky++)
            for (int kx = 0; kx < KW; kx += 1 + PAIR(kx))
                for (int j = 0; j < count; j++) {
                    const float *in = x + ky * DY * XPITCH + kx * DX + (first + j) * LANES * SX, *taps = w + ky * KW + kx;
                    if (PAIR(kx)) {
                        V a = v_load(in), b = v_load(in + LANES);
                        sum[j] += taps[0] * v_even(a, b);
                        sum[j] += taps[1] * v_odd(a, b);
                    } else sum[j] += taps[0] * v_strided(in, SX);
                }
        for (int j = 0; j < count; j++) {
            V r = RESIDUAL ? v_load(a->r + c * RROW + n * YSTACK + oy * YPITCH + (first + j) * LANES) : v_set(0.0f);
            (void)r;
            NAME(put)(a, c, n, oy, first + j, EPILOGUE((sum[j] + a->b[c]), r));
        }
    }
}

enum { NAME(tasks) = PARTS * G * O };

LOCAL void SYMBOL(const struct args *a, long begin, long end)
{
    for (long u = begin; u < end; u++) {
        const long part = u / (G * O), c = u % (G * O);
        for (long i = PART_START(part); i < PART_START(part + 1); i++) {
            NAME(line)(a, c, i / OH, i % OH);
            NAME(clear)(a, c, i / OH, i % OH);
        }
    }
}
