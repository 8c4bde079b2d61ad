/* ---
family: rows_csr_panels
op: conv
format: csr_panels
dtype: f32
doc: non-zeros alone, K inputs at a time, so that all rows find them in the nearest cache.
with: rows.h panels.h
rank: 1
hosted: true
macros: STRIDED O C G T TAPS XROW YROW RROW SPAN MASK CLEAR RESIDUAL EPILOGUE
tiles:
  - {NV: 4, K: 192, ROWS: 256, SUMS: 2}
  - {NV: 4, K: 96, ROWS: 256, SUMS: 2}
  - {NV: 7, K: 96, ROWS: 256, SUMS: 1}
  - {NV: 4, K: 255, ROWS: 256, SUMS: 2}
--- */
INLINE void NAME(copy)(float *panel, const float *x, long channels, long band, long p, int n)
{
    static const int32_t taps[T] = TAPS;
    (void)band, (void)p;
    for (long c = 0; c < channels; c++, x += XROW)
        for (int t = 0; t < T; t++)
            for (int j = 0; j < n; j++, panel += LANES) v_store(panel, v_load(x + taps[t] + j * LANES));
}
