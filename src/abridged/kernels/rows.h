/* What the rows kernels share. Positions are cut into BLOCKS of nearly equal width, the first WIDES of them WIDE
 * vectors and the others one less, so that both widths are constants; and what leaves the accumulators passes through
 * one door, `finish`. */
#define VECTORS (STEPS(SPAN) / LANES)
#define BLOCKS ((VECTORS + NV - 1) / NV)
#define WIDE ((VECTORS + BLOCKS - 1) / BLOCKS)
#define WIDES (VECTORS - BLOCKS * (WIDE - 1))
#define BLOCK_START(block) (((block) * WIDE - ((block) > WIDES ? (block) - WIDES : 0)) * LANES)
#define IS_WIDE(block) (WIDES == BLOCKS || (block) < WIDES)

/* Row o, n vectors from position p on: residual, activation, mask, store. */
INLINE void NAME(finish)(const struct args *a, long o, long p, const V *sum, int n)
{
    float *y = a->y + o * YROW;
    for (int j = 0; j < n; j++, p += LANES) {
        V r = RESIDUAL ? v_load(a->r + o * RROW + p) : v_set(0.0f);
        V v = EPILOGUE((sum[j] + a->b[o]), r); /* last: it may be far larger than each term */
        (void)r;
        v_store(y + p, MASK ? v_and(v, i_load(a->mask + p)) : v);
    }
    if (CLEAR && p == VECTORS * LANES) memset(y + p, 0, 4 * (CLEAR));
}
