/* ---
family: pool
op: pool
format: none
dtype: f32
doc: largest or mean of each window, any padding, dilation and overhang; lines of outputs, tap by tap.
macros: C XROW YROW N XSTACK YSTACK YPITCH XPITCH XSTEP SY SX PY PX DY DX KH KW H W OH OW AVERAGE COUNT_PAD
tiles:
  - {}
--- */
/* Outputs [low, high) of a line see tap k inside the map. */
#define LOW(k) MIN(PX > (k) * DX ? (PX - (k) * DX + SX - 1) / SX : 0, OW)
#define HIGH(k) ((W) + PX > (k) * DX ? MIN(((W) + PX - (k) * DX + SX - 1) / SX, OW) : 0)
/* How many of a window's coordinates along an axis count in a mean: all within the padded map, or within the map. */
#define COUNT(o, s, p, k, n) \
    (COUNT_PAD ? MIN((o) * (s) + (k), (n) + 2 * (p)) - (o) * (s) \
               : MIN((o) * (s) - (p) + (k), (n)) - ((o) * (s) > (p) ? (o) * (s) - (p) : 0))

enum { NAME(tasks) = C };

LOCAL void SYMBOL(const struct args *a, long begin, long end)
{
    for (long c = begin; c < end; c++)
        for (int n = 0; n < N; n++)
            for (int oy = 0; oy < OH; oy++) {
                float line[OW];
                for (int j = 0; j < OW; j++) line[j] = AVERAGE ? 0.0f : -INFINITY;
                for (int ky = 0; ky < KH; ky++) {
                    int iy = oy * SY + ky * DY - PY;
                    if (iy < 0 || iy >= H) continue;
                    const float *x = a->x + c * XROW + n * (long)XSTACK + iy * (long)XPITCH;
                    for (int kx = 0; kx < KW; kx++) {
                        const float *from = x + (long)(kx * DX - PX) * XSTEP;
                        for (int j = LOW(kx); j < HIGH(kx); j++) {
                            float v = from[(long)j * SX * XSTEP];
                            if (AVERAGE) line[j] += v;
                            else line[j] = v > line[j] || v != v ? v : line[j];
                        }
                    }
                }
                float *y = a->y + c * YROW + n * (long)YSTACK + oy * (long)YPITCH;
                for (int j = 0; j < OW; j++)
                    y[j] = AVERAGE ? line[j] / (COUNT(oy, SY, PY, KH, H) * COUNT(j, SX, PX, KW, W)) : line[j];
            }
}
