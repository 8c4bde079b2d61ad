/* ---
family: rows_csr_strided
op: conv
format: csr_panels
dtype: f32
doc: as rows_csr_panels, of inputs with a stride - the lanes are picked while they are copied.
with: rows.h panels.h
hosted: true
strides: only
macros: STRIDED O C G T TAPS XROW XSTACK XLINE XAT SX YROW YSTACK YPITCH N OH OW RROW SPAN MASK CLEAR RESIDUAL EPILOGUE
tiles:
  - {NV: 4, K: 192, ROWS: 256, SUMS: 2}
  - {NV: 4, K: 96, ROWS: 256, SUMS: 2}
--- */
/* A block of positions is cut where lines begin, and of each line the part in the block is copied in whole vectors: the next
 * one overwrites what was too much. What lies between two lines is masked. */
struct NAME(cut) {
    long from, to, vectors;
};

INLINE long NAME(cuts)(struct NAME(cut) *cuts, long band, long p, int n)
{
    const long end = p + n * LANES;
    (void)band; /* which XAT need not name */
    long stack = N > 1 ? MIN(N - 1, p / YSTACK) : 0, line = OH > 1 ? MIN(OH - 1, (p - stack * YSTACK) / YPITCH) : 0, count = 0;

    for (long at = p; at < end; count++) {
        const long start = stack * YSTACK + line * YPITCH, from = stack * XSTACK + XAT(line, band) + (at - start) * SX - p;
        if (++line == OH) line = 0, stack++;
        const long left = MAX(0, MIN(end, start + OW) - at);
        cuts[count] = (struct NAME(cut)){from, at - p, (left + LANES - 1) / LANES};
        at = stack < N ? stack * YSTACK + line * YPITCH : end;
    }
    return count;
}

INLINE void NAME(copy)(float *panel, const float *x, long channels, long band, long p, int n)
{
    static const int32_t taps[T] = TAPS;
    struct NAME(cut) cuts[WIDE * LANES];
    const long count = NAME(cuts)(cuts, band, p, n);

    for (long c = 0; c < channels; c++, x += XROW)
        for (int t = 0; t < T; t++, panel += n * LANES)
            for (long i = 0; i < count; i++)
                for (long j = 0; j < cuts[i].vectors * LANES; j += LANES)
                    v_store(panel + cuts[i].to + j, v_strided(x + taps[t] + cuts[i].from + j * SX, SX));
}
