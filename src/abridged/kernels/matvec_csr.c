/* ---
family: matvec_csr
op: linear
format: csr
dtype: f32
doc: one position; the dot product of a row's non-zeros with the inputs that they name, in PARTS interleaved sums.
macros: O K RESIDUAL EPILOGUE
tiles:
  - {PARTS: 4, ROWS: 16}
  - {PARTS: 8, ROWS: 16}
--- */
/* The format of rows_csr with one tap: an index is the input's number. */
#define CHUNKS ((O + ROWS - 1) / ROWS)
#if K <= 65536
#define INDEX uint16_t
#else
#define INDEX uint32_t
#endif

INLINE float NAME(dot)(const float *x, const float *values, const INDEX *indices, uint32_t n)
{
    float sum[PARTS] = {0}, total = 0.0f;
    uint32_t i = 0;
    for (; i + PARTS <= n; i += PARTS)
        for (int j = 0; j < PARTS; j++) sum[j] += values[i + j] * x[indices[i + j]];
    for (; i < n; i++) total += values[i] * x[indices[i]];
    for (int j = 0; j < PARTS; j++) total += sum[j];
    return total;
}

enum { NAME(tasks) = CHUNKS };

LOCAL void SYMBOL(const struct args *a, long begin, long end)
{
    const uint32_t *starts = (const uint32_t *)a->w, nonzeros = starts[O];
    const float *values = (const float *)(starts + STEPS(O + 1));
    const INDEX *indices = (const INDEX *)(values + STEPS((size_t)nonzeros));

    for (long o = begin * ROWS; o < MIN(end * ROWS, O); o += LANES) {
        const int n = (int)MIN(LANES, MIN(end * ROWS, O) - o);
        float sum[LANES] = {0};
        for (int j = 0; j < n; j++) {
            uint32_t i = starts[o + j];
            sum[j] = a->b[o + j] + NAME(dot)(a->x, values + i, indices + i, starts[o + j + 1] - i);
        }
        V r = RESIDUAL ? v_load_n(a->r + o, n) : v_set(0.0f);
        (void)r;
        v_store_n(a->y + o, EPILOGUE(v_load(sum), r), n);
    }
}
