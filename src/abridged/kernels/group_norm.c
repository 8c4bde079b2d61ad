/* ---
family: group_norm
op: group_norm
format: none
dtype: f32
doc: each group of CG channels less its mean, over its deviation, then a scale and a shift per channel.
macros: C CG N XROW XSTACK XPLANE XPITCH YROW YSTACK YPLANE YPITCH D H W EPS
tiles:
  - {}
--- */
/* The biases are C scales, rounded up to a whole step, and then C shifts. */
#define LINE(p, P, c, i) ((p) + (c) * (long)P##ROW + (i) / H * (long)P##PLANE + (i) % H * (long)P##PITCH)
#define SIZE ((float)(CG) * (D) * (H) * (W))

INLINE float NAME(total)(V sum)
{
    float lanes[LANES], total = 0.0f;
    v_store(lanes, sum);
    for (int l = 0; l < LANES; l++) total += lanes[l];
    return total;
}

/* n numbers at p, less m; zeros behind them. */
INLINE V NAME(less)(const float *p, float m, int n)
{
    float lanes[LANES];
    v_store(lanes, v_load_n(p, n) - m);
    return v_load_n(lanes, n);
}

enum { NAME(tasks) = N * (C / CG) };

LOCAL void SYMBOL(const struct args *a, long begin, long end)
{
    for (long u = begin; u < end; u++) {
        const long n = u / (C / CG), first = u % (C / CG) * CG;
        const float *x = a->x + n * XSTACK, *scales = a->b, *shifts = a->b + STEPS(C);
        float *y = a->y + n * YSTACK;
        V sum = v_set(0.0f), rest = v_set(0.0f), square = v_set(0.0f);

        for (long c = first; c < first + CG; c++) { /* a sum per channel, and then of those: long sums lose more to rounding */
            V s = v_set(0.0f);
            for (long i = 0; i < D * H; i++) {
                const float *line = LINE(x, X, c, i);
                int j = 0;
                for (; j + LANES <= W; j += LANES) s = s + v_load(line + j);
                if (j < W) s = s + v_load_n(line + j, W - j);
            }
            sum = sum + s;
        }
        const float near = NAME(total)(sum) / SIZE;
        for (long c = first; c < first + CG; c++) {
            V s = v_set(0.0f), q = v_set(0.0f);
            for (long i = 0; i < D * H; i++) {
                const float *line = LINE(x, X, c, i);
                int j = 0;
                for (; j + LANES <= W; j += LANES) {
                    V v = v_load(line + j) - near;
                    s = s + v, q = q + v * v;
                }
                if (j < W) {
                    V v = NAME(less)(line + j, near, W - j);
                    s = s + v, q = q + v * v;
                }
            }
            rest = rest + s, square = square + q;
        }
        /* The mean is off by a unit in the last place, and where a group hardly varies, that would show: the rest has one, too. */
        const float off = NAME(total)(rest) / SIZE, mean = near + off, variance = NAME(total)(square) / SIZE - off * off;
        const float inverse = 1.0f / sqrtf(MAX(variance, 0.0f) + EPS);
        for (long c = first; c < first + CG; c++)
            for (long i = 0; i < D * H; i++) {
                const float *line = LINE(x, X, c, i), scale = inverse * scales[c];
                float *to = LINE(y, Y, c, i);
                int j = 0;
                for (; j + LANES <= W; j += LANES) v_store(to + j, (v_load(line + j) - mean) * scale + shifts[c]);
                if (j < W) v_store_n(to + j, (v_load_n(line + j, W - j) - mean) * scale + shifts[c], W - j);
            }
    }
}
