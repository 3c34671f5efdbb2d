// cuBLAS and cuRAND, as far as candle and this program call them. Column by column, as the real one.
#include "memory.hpp"

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

namespace {
enum Status { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Type { F32 = 0, F16 = 2, BF16 = 14 };

size_t size_of(int type) { return type == F32 ? 4 : 2; }

float read(const char *from, int type, size_t i) {
    if (type == F32) return ((const float *)from)[i];
    if (type == F16) return (float)((const _Float16 *)from)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)from)[i] << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

void write(char *to, int type, size_t i, float x) {
    if (type == F32) ((float *)to)[i] = x;
    if (type == F16) ((_Float16 *)to)[i] = (_Float16)x;
    if (type == BF16) {
        uint32_t bits;
        memcpy(&bits, &x, 4);
        bool nan = x != x;
        ((uint16_t *)to)[i] = nan ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    }
}

// One side of the product as f32, [inner][outer]; `by_inner`: its memory has all outer indices of an inner one together.
std::vector<float> pack(const char *from, int type, int outer, int inner, int leading, bool by_inner) {
    std::vector<float> to((size_t)outer * inner);
    for (int p = 0; p < inner; p++)
        for (int i = 0; i < outer; i++)
            to[(size_t)p * outer + i] = read(from, type, by_inner ? (size_t)p * leading + i : (size_t)i * leading + p);
    return to;
}

// sums[n][m] += a[k][m] * b[k][n], in blocks that stay in the cache.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
__attribute__((target_clones("arch=x86-64-v4", "arch=haswell", "default")))
#endif
void multiply(const float *a, const float *b, float *sums, int m, int n, int k) {
    constexpr int ROWS = 128, INNER = 256;
    for (int p0 = 0; p0 < k; p0 += INNER)
        for (int i0 = 0; i0 < m; i0 += ROWS) {
            int p1 = std::min(k, p0 + INNER), rows = std::min(m - i0, ROWS);
            for (int j = 0; j < n; j++) {
                float sum[ROWS] = {0};
                for (int p = p0; p < p1; p++) {
                    const float *column = a + (size_t)p * m + i0;
                    float x = b[(size_t)p * n + j];
                    if (rows == ROWS)
                        for (int i = 0; i < ROWS; i++) sum[i] += column[i] * x;
                    else
                        for (int i = 0; i < rows; i++) sum[i] += column[i] * x;
                }
                for (int i = 0; i < rows; i++) sums[(size_t)j * m + i0 + i] += sum[i];
            }
        }
}
}  // namespace

API int cublasCreate_v2(void **handle) {
    static int one;
    *handle = &one;
    return 0;
}
API int cublasDestroy_v2(void *) { return 0; }
API int cublasSetStream_v2(void *, void *) { return 0; }
API int cublasSetMathMode(void *, int) { return 0; }
API int cublasSetPointerMode_v2(void *, int) { return 0; }

API int cublasGemmStridedBatchedEx(void *, int ta, int tb, int m, int n, int k, const void *alpha, const char *a, int a_type,
                                   int lda, long long stride_a, const char *b, int b_type, int ldb, long long stride_b,
                                   const void *beta, char *c, int c_type, int ldc, long long stride_c, int batch,
                                   int compute, int) {
    Call call("cublasGemm");
    for (int type : {a_type, b_type, c_type})
        if (type != F32 && type != F16 && type != BF16) return NOT_SUPPORTED;
    bool in_f16 = compute == 64 || compute == 65;
    float scale = read((const char *)alpha, in_f16 ? F16 : F32, 0), keep = read((const char *)beta, in_f16 ? F16 : F32, 0);
    if (m < 0 || n < 0 || k < 0 || lda < std::max(1, ta ? k : m) || ldb < std::max(1, tb ? n : k) || ldc < std::max(1, m))
        return INVALID_VALUE;
    if (!m || !n) return SUCCESS;
    for (int i = 0; i < batch; i++, a += stride_a * size_of(a_type), b += stride_b * size_of(b_type), c += stride_c * size_of(c_type)) {
        auto span = [](size_t leading, size_t columns, size_t rows) { return columns ? leading * (columns - 1) + rows : 0; };
        call.check(a, span(lda, ta ? m : k, ta ? k : m) * size_of(a_type), "a");
        call.check(b, span(ldb, tb ? k : n, tb ? n : k) * size_of(b_type), "b");
        call.check(c, span(ldc, n, m) * size_of(c_type), "c");
        std::vector<float> left = pack(a, a_type, m, k, lda, !ta), right = pack(b, b_type, n, k, ldb, tb);
        std::vector<float> sums((size_t)m * n);
        multiply(left.data(), right.data(), sums.data(), m, n, k);
        for (int j = 0; j < n; j++)
            for (int row = 0; row < m; row++) {
                size_t at = (size_t)j * ldc + row;
                float before = keep != 0.0f ? keep * read(c, c_type, at) : 0.0f;
                write(c, c_type, at, scale * sums[(size_t)j * m + row] + before);
            }
    }
    return SUCCESS;
}

API int cublasGemmEx(void *handle, int ta, int tb, int m, int n, int k, const void *alpha, const char *a, int a_type, int lda,
                     const char *b, int b_type, int ldb, const void *beta, char *c, int c_type, int ldc, int compute,
                     int algorithm) {
    return cublasGemmStridedBatchedEx(handle, ta, tb, m, n, k, alpha, a, a_type, lda, 0, b, b_type, ldb, 0, beta, c, c_type,
                                      ldc, 0, 1, compute, algorithm);
}

API int cublasSgemmStridedBatched(void *handle, int ta, int tb, int m, int n, int k, const float *alpha, const char *a,
                                  int lda, long long stride_a, const char *b, int ldb, long long stride_b,
                                  const float *beta, char *c, int ldc, long long stride_c, int batch) {
    constexpr int COMPUTE_32F = 68;
    return cublasGemmStridedBatchedEx(handle, ta, tb, m, n, k, alpha, a, F32, lda, stride_a, b, F32, ldb, stride_b, beta, c,
                                      F32, ldc, stride_c, batch, COMPUTE_32F, 0);
}

typedef std::mt19937_64 Generator;
API int curandCreateGenerator(void **generator, int) { *generator = new Generator; return 0; }
API int curandDestroyGenerator(void *generator) { delete (Generator *)generator; return 0; }
API int curandSetStream(void *, void *) { return 0; }
API int curandSetPseudoRandomGeneratorSeed(void *generator, unsigned long long seed) {
    ((Generator *)generator)->seed(seed);
    return 0;
}
API int curandGenerateUniform(void *generator, float *to, size_t n) {
    Call("curand").check(to, n * sizeof *to, "out");
    std::uniform_real_distribution<float> uniform;
    for (size_t i = 0; i < n; i++) to[i] = uniform(*(Generator *)generator);
    return 0;
}
API int curandGenerateNormal(void *generator, float *to, size_t n, float mean, float deviation) {
    constexpr int LENGTH_NOT_MULTIPLE = 105;
    if (n % 2) return LENGTH_NOT_MULTIPLE;
    Call("curand").check(to, n * sizeof *to, "out");
    std::normal_distribution<float> normal(mean, deviation);
    for (size_t i = 0; i < n; i++) to[i] = normal(*(Generator *)generator);
    return 0;
}
