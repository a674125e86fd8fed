/* The host object of RuntimeExecutorTest's plans: what a generated kernel looks like. y = a * x + b, row by row; rows of 3. */
#include <stdint.h>
void scale_rows(const float *a, const float *x, const float *b, float *y, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < 3; ++i)
      y[r * 3 + i] = a[0] * x[r * 3 + i] + b[i];
}
