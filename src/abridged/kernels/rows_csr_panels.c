/* ---
family: rows_csr_panels
op: conv
format: csr_panels
dtype: f32
doc: non-zeros alone, K inputs at a time, which are first copied side by side so that all rows find them in the nearest cache.
with: rows.h
macros: O C G T TAPS XROW YROW RROW SPAN MASK CLEAR RESIDUAL EPILOGUE
tiles:
  - {NV: 8, K: 128, ROWS: 256}
  - {NV: 6, K: 128, ROWS: 64}
  - {NV: 4, K: 96, ROWS: 256}
  - {NV: 4, K: 192, ROWS: 128}
--- */
/* An input is one tap of one channel, number channel x T + tap; they are cut into PANELS of nearly equal size, the first LARGE
 * of them one larger. Packed weights: starts (uint32, by group, panel and piece of ROWS rows), values (float), indices within
 * the panel (uint8), and how many each row has of each panel (uint8), each section at a multiple of 64 bytes.
 * Between two panels a row's sums rest in the output itself. A unit of work is one piece of rows of one block of positions. */
#define PIECES ((O + ROWS - 1) / ROWS)
#define PANELS ((C * T + K - 1) / K)
#define INPUTS ((C * T + PANELS - 1) / PANELS)
#define LARGE (C * T - PANELS * (INPUTS - 1))

struct NAME(weights) {
    const float *values;
    const uint8_t *indices, *counts;
};

/* Inputs first to last, n vectors each from position p on. */
INLINE void NAME(copy)(float *panel, const float *x, long first, long last, int n)
{
    static const int32_t taps[T] = TAPS;
    for (long i = first; i < last; i++)
        for (int j = 0; j < n; j++, panel += LANES) v_store(panel, v_load(x + i / T * XROW + taps[i % T] + j * LANES));
}

INLINE void NAME(row)(const struct args *a, struct NAME(weights) *w, const float *panel, long row, long p, int n,
                      int begins, int ends)
{
    float *y = a->y + row * YROW + p;
    const float *values = w->values;
    const uint8_t *indices = w->indices;
    V sum[WIDE];

    for (int j = 0; j < n; j++) sum[j] = begins ? v_set(0.0f) : v_load(y + j * LANES);
    for (int i = 0, count = *w->counts++; i < count; i++) {
        const float *in = panel + indices[i] * (long)(n * LANES);
        for (int j = 0; j < n; j++) sum[j] += values[i] * v_load(in + j * LANES);
    }
    w->values += w->counts[-1];
    w->indices += w->counts[-1];
    if (ends) NAME(finish)(a, row, p, sum, n);
    else
        for (int j = 0; j < n; j++) v_store(y + j * LANES, sum[j]);
}

INLINE void NAME(piece)(const struct args *a, long group, long piece, long p, int n)
{
    _Alignas(64) float panel[INPUTS * WIDE * LANES];
    const uint32_t *starts = (const uint32_t *)a->w, nonzeros = starts[G * PANELS * PIECES];
    const float *values = (const float *)(starts + STEPS(G * PANELS * PIECES + 1)), *x = a->x + group * C * XROW + p;
    const uint8_t *indices = (const uint8_t *)(values + STEPS((size_t)nonzeros));
    const uint8_t *counts = indices + ((size_t)nonzeros + 63) / 64 * 64;
    const long first = piece * ROWS, last = MIN(first + ROWS, O);

    for (long k = 0, input = 0; k < PANELS; k++) {
        const long next = input + INPUTS - (k >= LARGE), unit = group * PANELS + k;
        const uint32_t start = starts[unit * PIECES + piece];
        struct NAME(weights) w = {values + start, indices + start, counts + unit * O + first};
        NAME(copy)(panel, x, input, next, n);
        for (long row = first; row < last; row++)
            NAME(row)(a, &w, panel, group * O + row, p, n, k == 0, k == PANELS - 1);
        input = next;
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
