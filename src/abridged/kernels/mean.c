/* ---
family: mean
op: mean
format: none
dtype: f32
doc: the average of each map.
macros: C XROW YROW N XSTACK YSTACK XAT H W
tiles:
  - {}
--- */
enum { NAME(tasks) = C };

LOCAL void SYMBOL(const struct args *a, long begin, long end)
{
    const int whole = W / LANES * LANES;
    for (long c = begin; c < end; c++)
        for (int n = 0; n < N; n++) {
            const float *map = a->x + c * XROW + n * (long)XSTACK;
            V sum = v_set(0.0f);
            float total = 0.0f, lanes[LANES], last[LANES] = {0};
            for (long i = 0; i < H; i++) {
                const float *x = map + XAT(i, 0);
                for (int j = 0; j < whole; j += LANES) sum = sum + v_load(x + j);
                for (int j = 0; j < W - whole; j++) last[j] += x[whole + j];
            }
            v_store(lanes, sum);
            for (int l = 0; whole && l < LANES; l++) total += lanes[l];
            for (int j = 0; j < W - whole; j++) total += last[j];
            a->y[c * YROW + n * (long)YSTACK] = total * (1.0f / ((H) * (W)));
        }
}
