/* LSQ (Esser et al. 2020), and PACT's gradient (Choi et al. 2018), on dense float32 arrays, one pass each way.
 *
 * Compiled with -ffp-contract=off: the values are those of the eager path to the last bit; only the order in which the
 * step's gradient is summed differs.
 */
#include <math.h>
#include <stddef.h>

#define BLOCK 4096 /* floats are summed within a block, blocks in double */

/* q = round(clip(v / s, qn, qp)) * s */
void lsq_forward(const float *restrict v, float *restrict q, size_t n, float s, float qn, float qp) {
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        float r = rintf(v[i] / s);
        r = r < qn ? qn : r;
        r = r > qp ? qp : r;
        q[i] = r * s;
    }
}

/* grad_v = g inside the bounds, 0 outside; returns the sum of g (q - v) inside and g q outside. */
double lsq_backward(const float *restrict g, const float *restrict v, const float *restrict q, float *restrict grad_v,
                    size_t n, float low, float high) {
    double total = 0.0;
    for (size_t start = 0; start < n; start += BLOCK) {
        size_t end = start + BLOCK < n ? start + BLOCK : n;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (size_t i = start; i < end; i++) {
            int inside = (v[i] > low) & (v[i] < high); /* & and not &&: no branch to keep it from being vectorised */
            float gradient = g[i];
            grad_v[i] = inside ? gradient : 0.0f;
            sum += gradient * (q[i] - (inside ? v[i] : 0.0f));
        }
        total += sum;
    }
    return total;
}

/* grad_v = g inside the bounds, 0 outside; returns the sum of g q outside. */
double clip_backward(const float *restrict g, const float *restrict v, const float *restrict q, float *restrict grad_v,
                     size_t n, float low, float high) {
    double total = 0.0;
    for (size_t start = 0; start < n; start += BLOCK) {
        size_t end = start + BLOCK < n ? start + BLOCK : n;
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (size_t i = start; i < end; i++) {
            int inside = (v[i] > low) & (v[i] < high);
            float gradient = g[i];
            grad_v[i] = inside ? gradient : 0.0f;
            sum += inside ? 0.0f : gradient * q[i];
        }
        total += sum;
    }
    return total;
}
