/* ---
family: columns_dense
op: conv
format: columns
dtype: f32
doc: M times 16 outputs in the lanes by P positions, whose inputs are read one by one; no position is computed in vain.
with: lines.h
rank: 1
strides: too
macros: O C G T TAPS XROW XSTACK XLINE XAT EVEN SX YROW RROW N OH OW YSTACK YPITCH MASK CLEAR RESIDUAL EPILOGUE
tiles:
  - {M: 2, P: 14}
  - {M: 2, P: 8}
  - {M: 1, P: 28}
  - {M: 1, P: 6}
--- */
/* Outputs are rounded up to sixteens and cut into PANELS of at most M; packed, a panel holds its outputs side by side for each
 * tap of each channel. A tile has at most P positions: a piece of one line, WIDE positions or one less, or DEEP whole lines, or
 * one less. The input of a line is at XAT, that of the next one XLINE further where lines are EVEN, and columns are SX apart: a
 * stride costs nothing. Tiles are gathered in bands whose inputs fit the second cache: all tiles of a band pass under a panel, and
 * fetch the next panel meanwhile. */
#define SIXTEENS ((O + 15) / 16)
#define PANELS ((SIXTEENS + M - 1) / M)
#define TALL ((SIXTEENS + PANELS - 1) / PANELS)
#define TALLS (SIXTEENS - PANELS * (TALL - 1))
#define LONGEST MIN(P, 16)
#define PIECES ((OW + LONGEST - 1) / LONGEST)
#define WIDE ((OW + PIECES - 1) / PIECES)
#define WIDES (OW - PIECES * (WIDE - 1))
#define MOST_LINES (EVEN ? MAX(1, P / OW) : 1)
#define LAYERS ((OH + MOST_LINES - 1) / MOST_LINES)
#define DEEP ((OH + LAYERS - 1) / LAYERS)
#define DEEPS (OH - LAYERS * (DEEP - 1))
#define TILES ((long)N * LAYERS * PIECES)
#define BAND MIN(TILES, MAX(1, (1L << 19) / (4L * C * MAX(XLINE, OW * SX) * DEEP) * PIECES))
#define BANDS ((TILES + BAND - 1) / BAND)
#define PER_SIXTEEN (16 / LANES)
#define AHEAD 8 /* taps whose weights are on their way */

/* m sixteens of outputs by `lines` lines of n positions. */
INLINE void NAME(tile)(const struct args *a, long group, long first, long stack, long line, long column, long tile,
                       int m, int lines, int n)
{
    static const int32_t taps[T] = TAPS;
    const int vectors = m * PER_SIXTEEN;
    const float *w = (const float *)a->w + (group * SIXTEENS * 16 + first) * (C * T);
    const float *next = w + m * 16 * (C * T) + m * 16 * (C * T) / BAND * (tile % BAND);
    const float *x = a->x + group * C * XROW + stack * XSTACK + XAT(line, a->band) + column * SX;
    V sum[TALL * PER_SIXTEEN][DEEP][WIDE], in[TALL * PER_SIXTEEN];

    for (int i = 0; i < vectors; i++)
        for (int l = 0; l < lines; l++)
            for (int j = 0; j < n; j++) sum[i][l][j] = v_set(0.0f);
    for (int l = 0; l < lines; l++)
        for (long o = group * O + first; o < group * O + MIN(first + m * 16, O); o++) {
            const long p = stack * YSTACK + (line + l) * YPITCH + column;
            PREFETCH_OWN(a->y + o * YROW + p + n - 1);
            if (RESIDUAL) PREFETCH(a->r + o * RROW + p);
        }
    for (long c = 0; c < C; c++, x += XROW) {
        for (int l = 0; l < lines; l++)
            for (int j = 0; C > 4 && j < n * SX; j += 16) PREFETCH(x + 4 * XROW + l * XLINE + j);
        for (int i = 0; i < (m * T + BAND - 1) / BAND; i++) PREFETCH_FAR(next + i * 16);
        next += m * 16 * T / BAND;
        for (int t = 0; t < T; t++, w += m * 16) {
            for (int i = 0; i < m; i++) PREFETCH(w + (AHEAD * m + i) * 16);
            for (int i = 0; i < vectors; i++) in[i] = v_load(w + i * LANES);
            for (int l = 0; l < lines; l++)
                for (int j = 0; j < n; j++)
                    for (int i = 0; i < vectors; i++) sum[i][l][j] += x[taps[t] + l * XLINE + j * SX] * in[i];
        }
    }
    for (int l = 0; l < lines; l++) {
        const long p = stack * YSTACK + (line + l) * YPITCH + column;
        for (int i = 0; i < vectors; i++)
            for (int k = 0; k < n; k += LANES) {
                const int count = MIN(LANES, n - k);
                V turned[LANES];
                for (int j = 0; j < LANES; j++) turned[j] = j < count ? sum[i][l][MIN(k + j, WIDE - 1)] : v_set(0.0f);
                v_transpose(turned);
                for (int j = 0; j < LANES && first + i * LANES + j < O; j++) {
                    const long o = group * O + first + i * LANES + j;
                    V r = RESIDUAL ? v_load(a->r + o * RROW + p + k) : v_set(0.0f); /* more than is used */
                    (void)r;
                    v_store_n(a->y + o * YROW + p + k, EPILOGUE((turned[j] + a->b[o]), r), count);
                }
            }
        if (MASK && column + n == OW)
            for (long o = first; o < MIN(first + m * 16, O); o++) NAME(clear)(a, group * O + o, stack, line + l);
    }
}

enum { NAME(tasks) = G * PANELS * TILES };

LOCAL void SYMBOL(const struct args *a, long begin, long end)
{
    for (long u = begin; u < end; u++) {
        long band = ((u / (G * PANELS) + 1) * BANDS - 1) / TILES, start = band * TILES / BANDS;
        long tiles = (band + 1) * TILES / BANDS - start, rest = u - start * G * PANELS;
        long panel = rest / tiles, tile = start + rest % tiles, group = panel / PANELS, i = panel % PANELS;
        long k = tile % PIECES, layer = tile / PIECES % LAYERS, stack = tile / PIECES / LAYERS;
        long first = 16 * (i * TALL - (i > TALLS ? i - TALLS : 0)), column = k * WIDE - (k > WIDES ? k - WIDES : 0);
        long line = layer * DEEP - (layer > DEEPS ? layer - DEEPS : 0);
        int tall = TALLS == PANELS || i < TALLS, wide = WIDES == PIECES || k < WIDES, deep = DEEPS == LAYERS || layer < DEEPS;

#define TILE(m, lines, n) NAME(tile)(a, group, first, stack, line, column, tile, m, lines, n)
        if (tall && deep && wide) TILE(TALL, DEEP, WIDE);
        else if (tall && deep) TILE(TALL, DEEP, WIDE - 1);
        else if (tall) TILE(TALL, DEEP - 1, WIDE);
        else if (deep && wide) TILE(TALL - 1, DEEP, WIDE);
        else if (deep) TILE(TALL - 1, DEEP, WIDE - 1);
        else TILE(TALL - 1, DEEP - 1, WIDE);
    }
}
