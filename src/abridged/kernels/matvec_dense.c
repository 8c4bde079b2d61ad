/* ---
family: matvec_dense
op: linear
format: columns
dtype: f32
doc: one position; panels of M times 16 outputs in the lanes, the weights streamed once.
macros: O K RESIDUAL EPILOGUE
tiles:
  - {M: 4}
  - {M: 8}
  - {M: 2}
--- */
/* Outputs are rounded up to sixteens; packed, a panel of them holds its outputs side by side for each k. */
#define SIXTEENS (STEPS(O) / 16)
#define PANELS ((SIXTEENS + M - 1) / M)
#define TALL ((SIXTEENS + PANELS - 1) / PANELS)
#define TALLS (SIXTEENS - PANELS * (TALL - 1))

INLINE void NAME(panel)(const struct args *a, long row, int m)
{
    const float *w = (const float *)a->w + row * K;
    const int n = m * (16 / LANES);
    V sum[TALL * (16 / LANES)];

    for (int j = 0; j < n; j++) sum[j] = v_set(0.0f);
    for (long k = 0; k < K; k++, w += n * LANES)
        for (int j = 0; j < n; j++) sum[j] += a->x[k] * v_load(w + j * LANES);
    for (int j = 0; j < n; j++, row += LANES) {
        const int left = MIN(LANES, MAX(0, O - row));
        V b = v_load_n(a->b + row, left), r = RESIDUAL ? v_load_n(a->r + row, left) : v_set(0.0f);
        (void)r;
        v_store(a->y + row, EPILOGUE((sum[j] + b), r)); /* bias last: it may be far larger than each term */
    }
}

enum { NAME(tasks) = PANELS };

LOCAL void SYMBOL(const struct args *a, long begin, long end)
{
    for (long i = begin; i < end; i++) {
        long row = 16 * (i * TALL - (i > TALLS ? i - TALLS : 0));
        if (TALLS == PANELS || i < TALLS) NAME(panel)(a, row, TALL);
        else NAME(panel)(a, row, TALL - 1);
    }
}
