/* ---
family: split
op: split
format: none
dtype: f32
doc: rows rearranged so that a strided window reads consecutive positions - one map per phase of the stride, padding included.
macros: C XROW YROW N XSTACK YSTACK PHASES P SUB HS WS YPITCH XPITCH XSTEP SY SX PY PX H W
tiles:
  - {}
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

enum { NAME(tasks) = C };

LOCAL void SYMBOL(const struct args *a, long begin, long end)
{
    static const int phases[P][2] = PHASES;
    for (long c = begin; c < end; c++)
        for (int k = 0; k < P; k++)
            for (int n = 0; n < N; n++)
                for (int i = 0; i < HS; i++) {
                    int line = SY * i + phases[k][0] - PY, inside = line >= 0 && line < H;
                    const float *x = a->x + c * XROW + n * (long)XSTACK + (inside ? line : 0) * (long)XPITCH;
                    NAME(line)(x, a->y + c * YROW + k * SUB + n * (long)YSTACK + i * (long)YPITCH, inside, phases[k][1]);
                }
}
