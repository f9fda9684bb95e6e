/* Draw one of the likeliest tokens. kernels/draw.py says what is computed; its NumPy twin does the same. */
#include <math.h>
#include <stdint.h>

typedef struct {
    double top_k, top_p, min_p, temperature, chance;
} Options;

/* values [num_rows, count], the largest of each row first -> the place drawn in each row. scratch: room for `count`. */
void ollampi_draw(const float *values, int64_t num_rows, int64_t count, const Options *options, double *scratch,
                  int64_t *drawn) {
    for (int64_t row = 0; row < num_rows; row++, values += count) {
        const Options *want = options + row;
        const int64_t top_k = want->top_k < (double)count ? (int64_t)want->top_k : count;
        double all = 0, before = 0, reached = 0;
        int64_t num_kept = 0, last = 0, place = 0;
        for (int64_t i = 0; i < top_k; i++) all += scratch[i] = exp((double)values[i] - values[0]);
        while (num_kept < top_k &&
               (num_kept == 0 || (scratch[num_kept] >= want->min_p && before < want->top_p * all))) {
            before += scratch[num_kept];
            const double heated = exp(((double)values[num_kept] - values[0]) / want->temperature);
            if (heated > 0) last = num_kept; /* rounding must not lead beyond it */
            scratch[num_kept++] = reached += heated;
        }
        while (place < last && scratch[place] <= want->chance * reached) place++;
        drawn[row] = place;
    }
}
