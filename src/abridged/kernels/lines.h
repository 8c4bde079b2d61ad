/* What the kernels that go line by line share: an output line is OW positions at y, cut into vectors of which the last
 * may be partial; everything else of a row, its padding and the gaps between images, becomes zero. A unit of work is one
 * channel of one band of lines: with bands first, a thread has the same part of the map in every layer. */
#define LINE_VECTORS ((OW + LANES - 1) / LANES)
#define LAST (OW - (LINE_VECTORS - 1) * LANES)
#define LINES ((N) * (long)(OH))
#define PARTS MIN(LINES, BANDS)
#define PART_START(part) ((part) * LINES / PARTS)
#define OUT_STEPS STEPS((N - 1) * YSTACK + (OH - 1) * YPITCH + OW)

/* Vector j of output line (n, oy) of row c. */
INLINE void NAME(put)(const struct args *a, long c, long n, long oy, int j, V v)
{
    float *y = a->y + c * YROW + n * YSTACK + oy * YPITCH + j * LANES;
    if (j < LINE_VECTORS - 1) v_store(y, v);
    else v_store_n(y, v, LAST);
}

/* Zeros from the end of output line (n, oy) of row c to the next line, or to the row's end. */
INLINE void NAME(clear)(const struct args *a, long c, long n, long oy)
{
    float *row = a->y + c * YROW, *at = row + n * YSTACK + oy * YPITCH + OW, *next;
    next = oy < OH - 1 ? at - OW + YPITCH : n < N - 1 ? row + (n + 1) * YSTACK : row + OUT_STEPS + CLEAR;
    memset(at, 0, 4 * (size_t)(next - at));
}
