/* What the kernels of sparse weights in panels share. An input is one tap of one channel. Channels are cut into PANELS of nearly
 * equal size with at most K inputs each, the first LARGE of them one channel larger. Packed weights: starts (uint32, by
 * group, panel and piece of ROWS rows), values (float), indices within the panel (uint8: channel x T + tap), and for each
 * piece in each panel how many each row has and which row that is (both uint8), each section at a multiple of 64 bytes. Rows that have equally many follow each other: the processor
 * then foresees where each ends. A row's weights take turns with SUMS sets of sums, which would otherwise wait for each other.
 * Between two panels the rows' sums rest in memory of the thread's own. A unit of work is one piece of rows of one block of
 * positions. */
#define PIECES ((O + ROWS - 1) / ROWS)
#define MOST (K / T)
#define PANELS ((C + MOST - 1) / MOST)
#define CHANNELS ((C + PANELS - 1) / PANELS)
#define LARGE (C - PANELS * (CHANNELS - 1))
#define COPIED (T > 1 || STRIDED)
#define EARLY 6 /* rows whose residuals are on their way */

struct NAME(weights) {
    const float *values;
    const uint8_t *indices, *counts, *order;
};

/* A single tap is read where it lies, unless with a stride. Several are first copied side by side, for most lie across two
 * cache lines, and would be loaded twice by every row: n vectors of each. x lies at position p. */
INLINE void NAME(copy)(float *panel, const float *x, long channels, long band, long p, int n);

/* `in`: the panel, whose inputs lie `apart` floats from each other. */
INLINE void NAME(row)(const struct args *a, struct NAME(weights) *w, const float *in, long apart, float *rest, long first,
                      long early, long p, int n, int begins, int ends)
{
    const int row = *w->order, count = *w->counts++;
    float *own = rest + row * (WIDE * LANES);
    V sum[SUMS][WIDE];
    int i = 0;

    if (ends) NAME(expect)(a, first + w->order[early], p, n);
    w->order++;
    for (int j = 0; j < n; j++) sum[0][j] = begins ? v_set(0.0f) : v_load(own + j * LANES);
    for (int s = 1; s < SUMS; s++)
        for (int j = 0; j < n; j++) sum[s][j] = v_set(0.0f);
    for (; i + SUMS <= count; i += SUMS)
        for (int s = 0; s < SUMS; s++) {
            const float *from = in + w->indices[i + s] * apart;
            for (int j = 0; j < n; j++) sum[s][j] += w->values[i + s] * v_load(from + j * LANES);
        }
    for (; SUMS > 1 && i < count; i++) {
        const float *from = in + w->indices[i] * apart;
        for (int j = 0; j < n; j++) sum[0][j] += w->values[i] * v_load(from + j * LANES);
    }
    for (int s = 1; s < SUMS; s++)
        for (int j = 0; j < n; j++) sum[0][j] += sum[s][j];
    w->values += count;
    w->indices += count;
    if (ends) NAME(finish)(a, first + row, p, sum[0], n);
    else
        for (int j = 0; j < n; j++) v_store(own + j * LANES, sum[0][j]);
}

INLINE void NAME(piece)(const struct args *a, long group, long piece, long p, int n)
{
    static const int32_t taps[T] = TAPS;
    _Alignas(64) float panel[COPIED ? CHANNELS * T * WIDE * LANES + LANES : 1], rest[PANELS > 1 ? MIN(ROWS, O) * WIDE * LANES : 1];
    if (STRIDED) memset(panel, 0, sizeof panel); /* what lies between lines is computed with, though never used */
    const size_t counted = (size_t)G * PANELS * O;
    const uint32_t *starts = (const uint32_t *)a->w, nonzeros = starts[G * PANELS * PIECES];
    const float *values = (const float *)(starts + STEPS(G * PANELS * PIECES + 1)), *x = a->x + group * C * XROW;
    const uint8_t *indices = (const uint8_t *)(values + STEPS((size_t)nonzeros));
    const uint8_t *counts = indices + ((size_t)nonzeros + 63) / 64 * 64, *order = counts + (counted + 63) / 64 * 64;
    const long first = piece * ROWS, rows = MIN(ROWS, O - first);

    for (long k = 0; k < PANELS; k++) {
        const long channels = CHANNELS - (k >= LARGE), unit = group * PANELS + k, at = unit * O + first;
        const uint32_t start = starts[unit * PIECES + piece];
        struct NAME(weights) w = {values + start, indices + start, counts + at, order + at};
        const float *in = COPIED ? panel : x + p + taps[0];
        if (COPIED) NAME(copy)(panel, x + p, channels, a->band, p, n);
        for (long i = 0; i < rows; i++)
            NAME(row)(a, &w, in, COPIED ? n * LANES : XROW, rest, group * O + first, i + EARLY < rows ? EARLY : 0, p, n,
                      k == 0, k == PANELS - 1);
        x += channels * XROW;
    }
}

enum { NAME(tasks) = BLOCKS * G * PIECES };

LOCAL void SYMBOL(const struct args *a, long begin, long end)
{
    for (long u = begin; u < end; u++) {
        long block = u / (G * PIECES), unit = u % (G * PIECES), p = BLOCK_START(block);
        if (IS_WIDE(block)) NAME(piece)(a, unit / PIECES, unit % PIECES, p, WIDE);
        else NAME(piece)(a, unit / PIECES, unit % PIECES, p, WIDE - 1);
    }
}
