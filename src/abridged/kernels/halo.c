/* ---
family: halo
op: halo
format: none
dtype: f32
doc: lines beside a band of a map - copies of the neighbours' REACH next lines, and zeros behind the last line.
macros: C H YROW YPITCH LINES REACH BANDS APART
tiles:
  - {}
--- */
#define EARLY 8 /* channels whose lines are on their way from another core */

/* A unit of work is one channel of one band of LINES lines. What is copied and what is written never meet. */
enum { NAME(tasks) = BANDS * C };

LOCAL void SYMBOL(const struct args *a, long begin, long end)
{
    const size_t line = 4 * (YPITCH);
    for (long u = begin; u < end; u++) {
        const long k = u / C, valid = MIN(LINES, H - k * LINES), next = MIN(REACH, H - (k + 1) * LINES);
        float *own = a->y + k * APART + u % C * YROW;
        if (k > 0) {
            const float *above = own - APART + (LINES - REACH) * YPITCH;
            PREFETCH(above + EARLY * YROW);
            memcpy(own - REACH * YPITCH, above, REACH * line);
        }
        if (k < BANDS - 1) {
            PREFETCH(own + APART + EARLY * YROW);
            memcpy(own + LINES * YPITCH, own + APART, (size_t)next * line);
            memset(own + (LINES + next) * YPITCH, 0, (size_t)(REACH - next) * line);
        } else memset(own + valid * YPITCH, 0, (size_t)(LINES - valid) * line);
    }
}
