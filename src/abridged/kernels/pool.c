/* ---
family: pool
op: pool
format: none
dtype: f32
doc: largest or mean of each window, any padding, dilation and overhang; a window's lines become one, then its columns.
with: lines.h
macros: C XROW YROW N XSTACK YSTACK YPITCH XAT XSTEP SY SX PY PX DY DX KH KW H W OH OW AVERAGE COUNT_PAD MASK CLEAR
tiles:
  - {BANDS: 1}
  - {BANDS: 2}
--- */
/* How many of a window's coordinates along an axis count in a mean: all within the padded map, or within the map. */
#define COUNT(o, s, p, k, n) \
    (COUNT_PAD ? MIN((o) * (s) + (k), (n) + 2 * (p)) - (o) * (s) \
               : MIN((o) * (s) - (p) + (k), (n)) - ((o) * (s) > (p) ? (o) * (s) - (p) : 0))
#define FILL (AVERAGE ? 0.0f : -INFINITY)
/* All that the windows of whole vectors of outputs read. */
#define ROOM MAX(PX + (W), LINE_VECTORS * LANES * SX + LANES + (KW - 1) * DX)

INLINE V NAME(joined)(V a, V b) { return AVERAGE ? a + b : v_max(a, b); }

/* n numbers of a line of x; whatever behind them. */
INLINE V NAME(part)(const float *p, int n)
{
    float v[LANES] = {0};
    if (XSTEP == 1) return n == LANES ? v_load(p) : v_load_n(p, n);
    for (int i = 0; i < n; i++) v[i] = p[(long)i * XSTEP];
    return v_load(v);
}

/* Columns j to j + n of the lines that the windows of output line oy see, joined. */
INLINE void NAME(down)(const float *x, float *line, long oy, int j, int n)
{
    V v = v_set(FILL);
    for (long ky = 0; ky < KH; ky++) {
        const long iy = oy * SY + ky * DY - PY;
        if (iy >= 0 && iy < H) v = NAME(joined)(v, NAME(part)(x + XAT(iy, 0) + (long)j * XSTEP, n));
    }
    v_store_n(line + PX + j, v, n);
}

/* Output line (n, oy) of channel c, by way of `line`; its windows count from the map's first line. */
INLINE void NAME(line)(const struct args *a, float *line, const float *counts, long c, long n, long oy)
{
    const float *x = a->x + c * XROW + n * XSTACK;
    const long window = oy + a->band * (OH);
    int j = 0;
    for (; j + LANES <= W; j += LANES) NAME(down)(x, line, window, j, LANES);
    if (W % LANES) NAME(down)(x, line, window, j, W % LANES);
    for (j = 0; j < LINE_VECTORS; j++) {
        V v = v_strided(line + j * LANES * SX, SX);
        for (int kx = 1; kx < KW; kx++) v = NAME(joined)(v, v_strided(line + j * LANES * SX + kx * DX, SX));
        if (AVERAGE) v = v / (v_load(counts + j * LANES) * (float)(COUNT(window, SY, PY, KH, H)));
        NAME(put)(a, c, n, oy, j, v);
    }
}

enum { NAME(tasks) = PARTS * C };

LOCAL void SYMBOL(const struct args *a, long begin, long end)
{
    float line[ROOM], counts[LINE_VECTORS * LANES];
    for (int j = 0; j < ROOM; j++) line[j] = FILL;
    for (int j = 0; j < LINE_VECTORS * LANES; j++) counts[j] = j < OW ? (float)(COUNT(j, SX, PX, KW, W)) : 1.0f;
    for (long u = begin; u < end; u++) {
        const long part = u / C, c = u % C;
        for (long i = PART_START(part); i < PART_START(part + 1); i++) {
            NAME(line)(a, line, counts, c, i / OH, i % OH);
            if (MASK) NAME(clear)(a, c, i / OH, i % OH);
        }
    }
}
