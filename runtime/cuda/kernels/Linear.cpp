//===- Linear.cpp - dense products, linear and grouped_matmul ---------------===//
// Dense products, those of gradients too, run on cuBLASLt, in f32 arithmetic without TF32; where it
// has no algorithm for a shape or its library is not there, and for grouped products, on our
// kernels. cuBLASLt is found when the program runs, so that the CUDA device needs no more than a
// driver to be linked.
//===----------------------------------------------------------------------===//
#include "ProductSplit.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <compare>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace moira::rt::cuda {
namespace {

constexpr const char *kLibrary = "libcublasLt.so.13";

/// The functions used, by name from the library.
struct Lt {
#define MOIRA_LT_FUNCTIONS(F)                                                                      \
  F(cublasLtCreate)                                                                                \
  F(cublasLtDestroy)                                                                               \
  F(cublasLtGetStatusString)                                                                       \
  F(cublasLtMatmul)                                                                                \
  F(cublasLtMatmulAlgoGetHeuristic)                                                                \
  F(cublasLtMatmulDescCreate)                                                                      \
  F(cublasLtMatmulDescDestroy)                                                                     \
  F(cublasLtMatmulDescSetAttribute)                                                                \
  F(cublasLtMatmulPreferenceCreate)                                                                \
  F(cublasLtMatmulPreferenceDestroy)                                                               \
  F(cublasLtMatmulPreferenceSetAttribute)                                                          \
  F(cublasLtMatrixLayoutCreate)                                                                    \
  F(cublasLtMatrixLayoutDestroy)
#define MEMBER(name) decltype(&::name) name = nullptr;
  MOIRA_LT_FUNCTIONS(MEMBER)
#undef MEMBER
  std::string problem; // empty: all functions are there
};

const Lt &lt() {
  static const Lt functions = [] {
    Lt f;
    void *library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      f.problem = dlerror();
      return f;
    }
#define LOAD(name)                                                                                 \
  f.name = reinterpret_cast<decltype(f.name)>(dlsym(library, #name));                              \
  if (!f.name)                                                                                     \
    f.problem = std::string(kLibrary) + " has no function " #name;
    MOIRA_LT_FUNCTIONS(LOAD)
#undef LOAD
    return f;
  }();
  return functions;
}

Status failed(std::string_view what, cublasStatus_t status) {
  return Status(ErrorId::DeviceFailed, format("cuBLASLt fails in '%.*s': %s", int(what.size()),
                                              what.data(), lt().cublasLtGetStatusString(status)));
}

/// What an algorithm is chosen for. Sizes and layouts are DenseProduct's.
struct Problem {
  cublasLtHandle_t handle;
  int64_t m, n, k;
  bool xDeep, wDeep;
  fb::DType in, out;
  std::array<uint32_t, 3> alignment; // of w, x and out
  size_t workspaceBytes;
  auto operator<=>(const Problem &) const = default;
};

/// A problem's descriptors and its algorithm; none if cuBLASLt has none.
struct Solution {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, out = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
  bool found = false;

  Solution() = default;
  Solution(const Solution &) = delete;
  ~Solution() {
    for (cublasLtMatrixLayout_t layout : {w, x, out})
      if (layout)
        lt().cublasLtMatrixLayoutDestroy(layout);
    if (product)
      lt().cublasLtMatmulDescDestroy(product);
  }
};

/// cuBLASLt's matrices are column-major, so it is asked for out^T[n,m] = w[n,k] x^T[k,m]. Rows in
/// memory are its columns: those of w [n,k] have length k and are to be transposed, those of w
/// [k,n] are right as they are; with x it is the other way round.
cublasStatus_t prepare(const Problem &problem, Solution &solution) {
  auto type = [](fb::DType dtype) { return dtype == fb::DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; };
  const cublasOperation_t ofW = problem.wDeep ? CUBLAS_OP_N : CUBLAS_OP_T,
                          ofX = problem.xDeep ? CUBLAS_OP_T : CUBLAS_OP_N;
  cublasLtMatmulPreference_t preference = nullptr;
  // Split sums may be gathered in f32 only, so that the bits do not depend on the split's timing.
  const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  cublasLtMatmulHeuristicResult_t result{};
  int results = 0;
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
  auto ok = [&](cublasStatus_t next) { return (status = next) == CUBLAS_STATUS_SUCCESS; };
  auto prefer = [&](cublasLtMatmulPreferenceAttributes_t what, const auto &value) {
    return ok(lt().cublasLtMatmulPreferenceSetAttribute(preference, what, &value, sizeof value));
  };
  const auto &[wAlign, xAlign, outAlign] = problem.alignment;
  auto n = uint64_t(problem.n), m = uint64_t(problem.m), k = uint64_t(problem.k);
  bool done =
      ok(lt().cublasLtMatmulDescCreate(&solution.product, CUBLAS_COMPUTE_32F, CUDA_R_32F)) &&
      ok(lt().cublasLtMatmulDescSetAttribute(solution.product, CUBLASLT_MATMUL_DESC_TRANSA, &ofW,
                                             sizeof ofW)) &&
      ok(lt().cublasLtMatmulDescSetAttribute(solution.product, CUBLASLT_MATMUL_DESC_TRANSB, &ofX,
                                             sizeof ofX)) &&
      ok(lt().cublasLtMatrixLayoutCreate(&solution.w, type(problem.in), problem.wDeep ? n : k,
                                         problem.wDeep ? k : n,
                                         problem.wDeep ? problem.n : problem.k)) &&
      ok(lt().cublasLtMatrixLayoutCreate(&solution.x, type(problem.in), problem.xDeep ? m : k,
                                         problem.xDeep ? k : m,
                                         problem.xDeep ? problem.m : problem.k)) &&
      ok(lt().cublasLtMatrixLayoutCreate(&solution.out, type(problem.out), n, m, problem.n)) &&
      ok(lt().cublasLtMatmulPreferenceCreate(&preference)) &&
      prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, problem.workspaceBytes) &&
      prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions) &&
      prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, wAlign) &&
      prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, xAlign) &&
      prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, outAlign) &&
      prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, outAlign) &&
      ok(lt().cublasLtMatmulAlgoGetHeuristic(problem.handle, solution.product, solution.w,
                                             solution.x, solution.out, solution.out, preference, 1,
                                             &result, &results));
  if (preference)
    lt().cublasLtMatmulPreferenceDestroy(preference);
  solution.found = done && results > 0 && result.state == CUBLAS_STATUS_SUCCESS;
  solution.algorithm = result.algo;
  bool refused = status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE;
  return refused ? CUBLAS_STATUS_SUCCESS : status; // then our own kernel does it
}

/// Solutions live as long as their handle. Finding one takes far longer than using it.
std::mutex solutionsMutex;
std::map<Problem, std::unique_ptr<Solution>> solutions;

Expected<const Solution *> solutionOf(const Problem &problem) {
  std::lock_guard lock(solutionsMutex);
  auto [it, fresh] = solutions.try_emplace(problem);
  if (fresh) {
    it->second = std::make_unique<Solution>();
    if (cublasStatus_t status = prepare(problem, *it->second); status != CUBLAS_STATUS_SUCCESS) {
      solutions.erase(it);
      return failed("linear", status);
    }
  }
  return it->second.get();
}

uint32_t alignmentOf(const void *p) {
  return uint32_t(std::min<size_t>(256, addressOf(p) & -addressOf(p)));
}

/// The dims of linear and grouped_matmul, and the product they make. A `linears` has several
/// results.
Status productOf(const Call &call, size_t w, const int32_t *groups, int64_t groupCount,
                 GroupedProduct &product, size_t result = 0) {
  if (Status s = checkTrailing(call, "contract", {&call.in[0], &call.in[w]}); !s)
    return s;
  const TensorRef &x = call.in[0], &weights = call.in[w], &out = call.out[result];
  int64_t contract = call.params.integer("contract");
  if (x.dtype != weights.dtype || (out.dtype != x.dtype && out.dtype != fb::DType::f32))
    return notOnCuda(call, format("%s by %s to %s", fb::EnumNameDType(x.dtype),
                                  fb::EnumNameDType(weights.dtype), fb::EnumNameDType(out.dtype)));
  int64_t n = leading(weights, contract);
  product = {x.data,
             weights.data,
             out.data,
             x.dtype,
             out.dtype,
             groups,
             groupCount,
             leading(x, contract),
             groups ? (groupCount > 0 ? n / groupCount
                                      : out.elements() / std::max<int64_t>(1, out.shape[0]))
                    : n,
             trailing(x, contract)};
  product.settled = call.areSettled(groups ? 1 : w, w + 1);
  return {};
}

} // namespace

Status ops::grouped_matmul(const Call &call) {
  GroupedProduct product;
  if (Status s = productOf(call, 2, call.input<int32_t>(1), call.in[1].elements(), product); !s)
    return s;
  return launchProduct(call, product);
}

Expected<bool> multiplyDense(const Call &call, const DenseProduct &p) {
  const CallContext &context = call.context;
  if (!context.blaslt)
    return false;
  Problem problem{context.blaslt,
                  p.m,
                  p.n,
                  p.k,
                  p.xDeep,
                  p.wDeep,
                  p.inType,
                  p.outType,
                  {alignmentOf(p.w), alignmentOf(p.x), alignmentOf(p.out)},
                  p.workspaceBytes};
  Expected<const Solution *> solution = solutionOf(problem);
  if (!solution)
    return solution.takeStatus();
  const Solution &s = **solution;
  if (!s.found)
    return false;
  const float one = 1, zero = 0;
  cublasStatus_t status = lt().cublasLtMatmul(context.blaslt, s.product, &one, p.w, s.w, p.x, s.x,
                                              &zero, p.out, s.out, p.out, s.out, &s.algorithm,
                                              p.workspace, p.workspaceBytes, context.stream);
  if (status != CUBLAS_STATUS_SUCCESS)
    return failed(call.name, status);
  return true;
}

Status ops::linear(const Call &call) {
  GroupedProduct p;
  if (Status s = productOf(call, 1, nullptr, 1, p); !s)
    return s;
  const CallContext &context = call.context;
  if (hasFewF32Rows(p))
    return launchProductFewF32Rows(call, p);
  if (p.m == 0 || p.n == 0 || p.k == 0 || hasFewRows(p))
    return launchProduct(call, p); // which makes zeros of k = 0
  if (fitsSplit(p) && isHopper())
    return launchProductSplit(call, p);
  Expected<bool> done =
      multiplyDense(call, {p.x, p.w, p.out, p.inType, p.outType, p.m, p.n, p.k, false, false,
                           context.workspace, context.workspaceBytes});
  if (!done)
    return done.takeStatus();
  return *done ? Status() : launchProduct(call, p);
}

Status ops::linears(const Call &call) {
  if (call.in.size() != call.out.size() + 1)
    return badCall(call, format("%zu weights, %zu results", call.in.size() - 1, call.out.size()));
  std::vector<GroupedProduct> products(call.out.size());
  for (size_t i = 0; i < products.size(); ++i)
    if (Status s = productOf(call, i + 1, nullptr, 1, products[i], i); !s)
      return s;
  if (haveFewRows(products))
    return launchProductsFewRows(call, products);
  for (size_t i = 0; i < call.out.size(); ++i) {
    const TensorRef operands[] = {call.in[0], call.in[i + 1]};
    CallContext context = call.context;
    context.settled = call.areSettled(i + 1, i + 2) ? 2 : 0;
    if (Status s = linear({call.name, operands, call.out.subspan(i, 1), call.params, context}); !s)
      return s;
  }
  return {};
}

Expected<cublasLtHandle_t> createBlasLt() {
  if (!lt().problem.empty())
    return Status(ErrorId::DeviceUnavailable,
                  "the CUDA device needs cuBLASLt 13: " + lt().problem +
                      "; install the CUDA 13 libraries or add their directory "
                      "to LD_LIBRARY_PATH");
  cublasLtHandle_t handle = nullptr;
  if (cublasStatus_t status = lt().cublasLtCreate(&handle); status != CUBLAS_STATUS_SUCCESS)
    return failed("create", status);
  return handle;
}

void destroyBlasLt(cublasLtHandle_t handle) {
  if (!handle)
    return;
  {
    std::lock_guard lock(solutionsMutex);
    std::erase_if(solutions, [&](const auto &entry) { return entry.first.handle == handle; });
  }
  lt().cublasLtDestroy(handle);
}

} // namespace moira::rt::cuda
