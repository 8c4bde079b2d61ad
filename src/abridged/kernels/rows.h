/* What the rows kernels share. Positions are cut into BLOCKS of nearly equal width, WIDE vectors or one less, so that both
 * widths are constants; they are evenly mixed and even in number, so that threads get equal parts. What leaves the
 * accumulators passes through one door, `finish`. */
#define VECTORS (STEPS(SPAN) / LANES)
#define LEAST_BLOCKS ((VECTORS + NV - 1) / NV)
#define BLOCKS MIN(VECTORS, LEAST_BLOCKS > 2 ? (LEAST_BLOCKS + 1) / 2 * 2 : LEAST_BLOCKS)
#define WIDE ((VECTORS + BLOCKS - 1) / BLOCKS)
#define FIRST_VECTOR(block) ((block) * VECTORS / BLOCKS)
#define BLOCK_START(block) (FIRST_VECTOR(block) * LANES)
#define IS_WIDE(block) (VECTORS % BLOCKS == 0 || FIRST_VECTOR((block) + 1) - FIRST_VECTOR(block) == WIDE)

/* What `finish` will want from memory. */
INLINE void NAME(expect)(const struct args *a, long o, long p, int n)
{
    for (int j = 0; RESIDUAL && j < n; j++) PREFETCH(a->r + o * RROW + p + j * LANES);
}

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
