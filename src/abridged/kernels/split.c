/* ---
family: split
op: split
format: none
dtype: f32
doc: rows rearranged so that a strided window reads consecutive positions - one map per phase of the stride, padding included.
macros: C XROW YROW N XSTACK YSTACK PHASES P SUB HS WS YPITCH XAT XSTEP SY SX PY PX H W
tiles:
  - {BANDS: 1}
  - {BANDS: 2}
--- */
/* Phase (a, b) holds at (i, j) what stands at padded coordinates (SY i + a, SX j + b). */
INLINE void NAME(line)(const float *x, float *y, int inside, int phase)
{
    const int first = PX > phase ? (PX - phase + SX - 1) / SX : 0;
    const int room = W + PX - phase, end = room > 0 ? (room + SX - 1) / SX : 0;
    const int low = inside ? MIN(first, WS) : WS, high = MIN(end, WS);
    int j = 0;
    for (; j < low; j++) y[j] = 0.0f;
    for (; j < high; j++) y[j] = x[(long)(SX * j + phase - PX) * XSTEP];
    for (; j < WS; j++) y[j] = 0.0f;
}

/* A unit of work is one channel of one band of lines, in every phase and image. */
#define PARTS MIN(HS, BANDS)
enum { NAME(tasks) = PARTS * C };

LOCAL void SYMBOL(const struct args *a, long begin, long end)
{
    static const int phases[P][2] = PHASES;
    for (long u = begin; u < end; u++) {
        const long part = u / C, c = u % C;
        for (int k = 0; k < P; k++)
            for (int n = 0; n < N; n++)
                for (long i = part * HS / PARTS; i < (part + 1) * HS / PARTS; i++) {
                    long line = SY * (i + a->band * HS) + phases[k][0] - PY;
                    const int inside = line >= 0 && line < H;
                    const float *x = a->x + c * XROW + n * (long)XSTACK + XAT((inside ? line : 0), 0);
                    NAME(line)(x, a->y + c * YROW + k * SUB + n * (long)YSTACK + i * YPITCH, inside, phases[k][1]);
                }
    }
}
