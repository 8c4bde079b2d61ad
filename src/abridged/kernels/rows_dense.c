/* ---
family: rows_dense
op: conv
format: dense
dtype: f32
doc: M rows by NV vectors of accumulators in registers; weights are packed in panels of M rows, channel by tap within.
with: rows.h
macros: O C G T TAPS XROW YROW RROW SPAN MASK CLEAR RESIDUAL EPILOGUE
tiles:
  - {M: 6, NV: 4, BAND: 1}
  - {M: 6, NV: 4, BAND: 6}
  - {M: 6, NV: 4, BAND: 9999}
  - {M: 4, NV: 3, BAND: 1}
  - {M: 4, NV: 3, BAND: 9999}
  - {M: 6, NV: 2, BAND: 1}
  - {M: 6, NV: 2, BAND: 9999}
--- */
/* Rows are cut into PANELS of at most M as positions are into blocks, and blocks into bands of at most BAND: a panel of weights
 * stays in the nearest cache while the blocks of a band pass; then comes the next panel, and after all panels the next band. */
#define PANELS ((O + M - 1) / M)
#define TALL ((O + PANELS - 1) / PANELS)
#define TALLS (O - PANELS * (TALL - 1))
#define AHEAD 4 /* channels whose inputs are on their way */
#define BANDS ((BLOCKS + BAND - 1) / BAND)

INLINE void NAME(tile)(const struct args *a, long group, long row, long p, int m, int n)
{
    static const int32_t taps[T] = TAPS;
    const float *w = (const float *)a->w + row * (C * T), *x = a->x + group * C * XROW + p;
    V sum[TALL][WIDE], in[WIDE];

    for (int i = 0; i < m; i++) NAME(expect)(a, row + i, p, n);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) sum[i][j] = v_set(0.0f);
    for (long c = 0; c < C; c++, x += XROW) {
        for (int j = 0; j < n; j++) PREFETCH(x + AHEAD * XROW + j * LANES);
        for (int t = 0; t < T; t++, w += m) {
            PREFETCH(w + 1024);
            for (int j = 0; j < n; j++) in[j] = v_load(x + taps[t] + j * LANES);
            for (int i = 0; i < m; i++)
                for (int j = 0; j < n; j++) sum[i][j] += w[i] * in[j];
        }
    }
    for (int i = 0; i < m; i++) NAME(finish)(a, row + i, p, sum[i], n);
}

enum { NAME(tasks) = G * PANELS * BLOCKS };

LOCAL void SYMBOL(const struct args *a, long begin, long end)
{
    for (long u = begin; u < end; u++) {
        long band = ((u / (G * PANELS) + 1) * BANDS - 1) / BLOCKS, start = band * BLOCKS / BANDS;
        long blocks = (band + 1) * BLOCKS / BANDS - start, rest = u - start * G * PANELS;
        long panel = rest / blocks, block = start + rest % blocks;
        long group = panel / PANELS, i = panel % PANELS;
        long row = group * O + i * TALL - (i > TALLS ? i - TALLS : 0), p = BLOCK_START(block);
        int tall = TALLS == PANELS || i < TALLS, wide = IS_WIDE(block);

        if (tall && wide) NAME(tile)(a, group, row, p, TALL, WIDE);
        else if (tall) NAME(tile)(a, group, row, p, TALL, WIDE - 1);
        else if (wide) NAME(tile)(a, group, row, p, TALL - 1, WIDE);
        else NAME(tile)(a, group, row, p, TALL - 1, WIDE - 1);
    }
}
