/* ---
family: rows_dense
op: conv
format: dense
dtype: f32
doc: M rows by NV vectors of accumulators in registers; weights are packed in panels of M rows, channel by tap within.
with: rows.h
macros: O C G T TAPS XROW YROW RROW SPAN MASK CLEAR RESIDUAL EPILOGUE
tiles:
  - {M: 8, NV: 3, PANELS_FIRST: 0}
  - {M: 8, NV: 3, PANELS_FIRST: 1}
  - {M: 6, NV: 4, PANELS_FIRST: 0}
  - {M: 6, NV: 4, PANELS_FIRST: 1}
  - {M: 12, NV: 2, PANELS_FIRST: 1}
  - {M: 4, NV: 3, PANELS_FIRST: 0}
  - {M: 4, NV: 3, PANELS_FIRST: 1}
  - {M: 6, NV: 2, PANELS_FIRST: 0}
  - {M: 6, NV: 2, PANELS_FIRST: 1}
--- */
/* Rows are cut into panels as positions are into blocks. PANELS_FIRST keeps a panel of weights in the cache while the
 * positions pass; otherwise a block of positions stays and the weights pass. */
#define PANELS ((O + M - 1) / M)
#define TALL ((O + PANELS - 1) / PANELS)
#define TALLS (O - PANELS * (TALL - 1))

INLINE void NAME(tile)(const struct args *a, long group, long row, long p, int m, int n)
{
    static const int32_t taps[T] = TAPS;
    const float *w = (const float *)a->w + row * (C * T), *x = a->x + group * C * XROW + p;
    V sum[TALL][WIDE], in[WIDE];

    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) sum[i][j] = v_set(0.0f);
    for (long c = 0; c < C; c++, x += XROW)
        for (int t = 0; t < T; t++, w += m) {
            for (int j = 0; j < n; j++) in[j] = v_load(x + taps[t] + j * LANES);
            for (int i = 0; i < m; i++)
                for (int j = 0; j < n; j++) sum[i][j] += w[i] * in[j];
        }
    for (int i = 0; i < m; i++) NAME(finish)(a, row + i, p, sum[i], n);
}

enum { NAME(tasks) = G * PANELS * BLOCKS };

LOCAL void SYMBOL(const struct args *a, long begin, long end)
{
    for (long u = begin; u < end; u++) {
        long block = PANELS_FIRST ? u % BLOCKS : u / (G * PANELS);
        long panel = PANELS_FIRST ? u / BLOCKS : u % (G * PANELS);
        long group = panel / PANELS, i = panel % PANELS;
        long row = group * O + i * TALL - (i > TALLS ? i - TALLS : 0), p = BLOCK_START(block);
        int tall = TALLS == PANELS || i < TALLS, wide = IS_WIDE(block);

        if (tall && wide) NAME(tile)(a, group, row, p, TALL, WIDE);
        else if (tall) NAME(tile)(a, group, row, p, TALL, WIDE - 1);
        else if (wide) NAME(tile)(a, group, row, p, TALL - 1, WIDE);
        else NAME(tile)(a, group, row, p, TALL - 1, WIDE - 1);
    }
}
