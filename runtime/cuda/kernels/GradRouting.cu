//===- GradRouting.cu - gradients of gates, limits and row weights ----------===//
// route_grad, limit_grad, choice_dots. A warp a token or a choice; a thread a token where there is
// little to do.
//===----------------------------------------------------------------------===//
#include "GradTools.h"
#include "moira/rt/Gate.h"

#include <cmath>

namespace moira::rt::cuda {
namespace {

constexpr int64_t kMostChoices = 64;
/// Of a grid; each takes a token after the other.
constexpr int64_t kMostWarps = 1 << 20;

/// Weights divided by max(sum + epsilon, least) and times scale.
struct Renormalisation {
  bool divides, ofKept;
  float epsilon, least, scale;

  /// `grads` of the quotients become those of the weights; `kept` may be null: all.
  __device__ void back(const float *weights, float *grads, const int32_t *kept, int64_t k) const {
    auto counts = [&](int64_t j) { return !ofKept || !kept || kept[j] >= 0; };
    float total = 0, dot = 0;
    for (int64_t j = 0; j < k; ++j) {
      total += counts(j) ? weights[j] : 0.0f;
      dot += grads[j] * weights[j];
    }
    float divisor = fmaxf(total + epsilon, least);
    for (int64_t j = 0; j < k; ++j) {
      if (divides) {
        grads[j] /= divisor;
        if (counts(j) && total + epsilon >= least)
          grads[j] -= dot / (divisor * divisor);
      }
      grads[j] *= scale;
    }
  }
};

struct GateArgs {
  int64_t experts, k;
  GateScore score;
  bool scoreFirst;
  float jitterEps;
  Renormalisation renorm;
};

__device__ float warpMax(float v) {
  for (int step = 16; step > 0; step /= 2)
    v = fmaxf(v, __shfl_xor_sync(kAllLanes, v, step));
  return v;
}

__device__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

/// One token's gate, a warp's work: logits of all experts, its choices, what comes back to their
/// weights. Lanes share the experts; what is small each does for itself.
struct TokenGrad {
  const GateArgs &gate;
  Reader logits;
  int64_t first; // of the token's logits
  const int32_t *ids;
  float *grads; // zero to begin with, lane e % 32 has set it

  __device__ float logit(int64_t e) const { return logits[first + e]; }
  __device__ bool isChosen(int64_t e, int64_t choices) const {
    for (int64_t j = 0; j < choices; ++j)
      if (ids[j] == e)
        return true;
    return false;
  }

  template <typename Work> __device__ void eachExpert(Work work) const {
    for (int64_t e = laneNumber(); e < gate.experts; e += 32)
      work(e);
  }
  /// Adds grad(j) to the gradients of the choices from `first` to `last`, once lanes are done with
  /// theirs.
  template <typename Grad>
  __device__ void addToChoices(int64_t first, int64_t last, Grad grad) const {
    __syncwarp();
    if (laneNumber() == 0)
      for (int64_t j = first; j < last; ++j)
        grads[ids[j]] += grad(j);
    __syncwarp();
  }

  template <typename Among>
  __device__ void largestAndTotal(Among among, float &largest, float &total) const {
    float most = -INFINITY, sum = 0;
    eachExpert([&](int64_t e) { most = among(e) ? fmaxf(most, logit(e)) : most; });
    largest = warpMax(most);
    eachExpert([&](int64_t e) { sum += among(e) ? expf(logit(e) - largest) : 0.0f; });
    total = warpSum(sum);
  }

  /// Through one softmax over the experts for which `among` holds.
  template <typename Among>
  __device__ void softmax(float *weights, float *given, Among among) const {
    float largest, total, dot = 0;
    largestAndTotal(among, largest, total);
    for (int64_t j = 0; j < gate.k; ++j)
      weights[j] = expf(logit(ids[j]) - largest) / total;
    gate.renorm.back(weights, given, nullptr, gate.k);
    for (int64_t j = 0; j < gate.k; ++j)
      dot += given[j] * weights[j];
    eachExpert([&](int64_t e) {
      if (among(e))
        grads[e] = -dot * expf(logit(e) - largest) / total;
    });
    addToChoices(0, gate.k, [&](int64_t j) { return given[j] * weights[j]; });
  }

  __device__ void elementwise(float *weights, float *given) const {
    bool sigmoid = gate.score == GateScore::sigmoid;
    for (int64_t j = 0; j < gate.k; ++j)
      weights[j] = sigmoid ? sigmoidOf(logit(ids[j])) : sqrtf(softplus(logit(ids[j])));
    gate.renorm.back(weights, given, nullptr, gate.k);
    addToChoices(0, gate.k, [&](int64_t j) {
      float s = sigmoidOf(logit(ids[j]));
      return given[j] * (sigmoid ? s * (1 - s) : s / (2 * weights[j]));
    });
  }

  __device__ void sparsemixer(const float *given) const {
    for (int64_t j = 0; j < gate.k; ++j) {
      float most = -INFINITY, largest, total;
      eachExpert([&](int64_t e) { most = isChosen(e, j) ? most : fmaxf(most, logit(e)); });
      most = warpMax(most);
      auto among = [&](int64_t e) {
        return !isChosen(e, j) &&
               !((most - logit(e)) / fmaxf(fabsf(logit(e)), most) > 2 * gate.jitterEps);
      };
      largestAndTotal(among, largest, total);
      float weight = expf(logit(ids[j]) - largest) / total, grad = given[j] * gate.renorm.scale;
      eachExpert([&](int64_t e) {
        if (among(e))
          grads[e] -= grad * weight * expf(logit(e) - largest) / total;
      });
      addToChoices(j, j + 1, [&](int64_t) { return grad * weight; });
    }
  }
};

__global__ void routeBack(Reader dy, Reader logits, const int32_t *ids, float *dx, int64_t tokens,
                          GateArgs gate, int32_t *flag) {
  float weights[kMostChoices], given[kMostChoices];
  for (int64_t t = warpNumber(); t < tokens; t += threadCount() / 32) {
    TokenGrad token{gate, logits, t * gate.experts, ids + t * gate.k, dx + t * gate.experts};
    bool sound = true;
    token.eachExpert([&](int64_t e) { token.grads[e] = 0; });
    for (int64_t j = 0; j < gate.k; ++j) {
      given[j] = dy[t * gate.k + j];
      sound &= token.ids[j] >= 0 && token.ids[j] < gate.experts;
    }
    if (!sound) {
      raise(flag, Fault::expert);
      continue;
    }
    if (gate.score == GateScore::sparsemixer)
      token.sparsemixer(given);
    else if (gate.score != GateScore::softmax)
      token.elementwise(weights, given);
    else if (gate.scoreFirst)
      token.softmax(weights, given, [](int64_t) { return true; });
    else
      token.softmax(weights, given, [&](int64_t e) { return token.isChosen(e, gate.k); });
  }
}

__global__ void limitBack(Reader dy, Reader before, const int32_t *ids, float *dx, int64_t tokens,
                          int64_t k, Renormalisation renorm) {
  float weights[kMostChoices], grads[kMostChoices];
  for (int64_t t = threadNumber(); t < tokens; t += threadCount()) {
    const int32_t *kept = ids + t * k;
    for (int64_t j = 0; j < k; ++j) {
      weights[j] = before[t * k + j];
      grads[j] = kept[j] < 0 ? 0.0f : dy[t * k + j];
    }
    renorm.back(weights, grads, kept, k);
    for (int64_t j = 0; j < k; ++j)
      dx[t * k + j] = grads[j];
  }
}

/// One warp a choice.
__global__ void dotRows(Reader rows, Reader x, const int32_t *pos, float *out, int64_t choices,
                        int64_t k, int64_t width, int64_t available, int32_t *flag) {
  int64_t j = warpNumber();
  if (j >= choices)
    return;
  int64_t row = pos[j];
  float dot = 0;
  if (row < -1 || row >= available) {
    if (laneNumber() == 0)
      raise(flag, Fault::row);
  } else if (row >= 0) {
    for (int64_t d = laneNumber(); d < width; d += 32)
      dot += rows[row * width + d] * x[j / k * width + d];
  }
  dot = warpSum(dot);
  if (laneNumber() == 0)
    out[j] = dot;
}

/// One warp a token, for rows in packs: the rows of several choices are under way together.
template <typename T>
__global__ void dotTokens(const T *rows, Reader x, const int32_t *pos, float *out, int64_t tokens,
                          int64_t k, int64_t width, int64_t available, int32_t *flag) {
  constexpr int together = 8;
  using Part = Pack<T, kNeighbours>;
  const int64_t t = warpNumber();
  if (t >= tokens)
    return;
  for (int64_t first = 0; first < k; first += together) {
    const Part *from[together];
    float dot[together] = {};
    bool bad = false;
#pragma unroll
    for (int u = 0; u < together; ++u) {
      const int64_t row = first + u < k ? pos[t * k + first + u] : -1;
      bad |= row < -1 || row >= available;
      from[u] = row >= 0 && row < available ? reinterpret_cast<const Part *>(rows + row * width)
                                            : nullptr;
    }
    if (bad && laneNumber() == 0)
      raise(flag, Fault::row);
    for (int64_t at = laneNumber(); at < width / kNeighbours; at += 32) {
      Part part[together];
      float other[kNeighbours];
#pragma unroll
      for (int u = 0; u < together; ++u)
        if (from[u])
          part[u] = from[u][at];
      x.load(t * width + at * kNeighbours, other);
#pragma unroll
      for (int u = 0; u < together; ++u)
        if (from[u])
#pragma unroll
          for (int i = 0; i < kNeighbours; ++i)
            dot[u] += toFloat(part[u].v[i]) * other[i];
    }
#pragma unroll
    for (int u = 0; u < together; ++u) {
      dot[u] = warpSum(dot[u]);
      if (laneNumber() == u && first + u < k)
        out[t * k + first + u] = dot[u];
    }
  }
}

Status tooManyChoices(const Call &call, int64_t k) {
  return notOnCuda(call, format("%lld choices a token", (long long)k));
}

} // namespace

Status ops::route_grad(const Call &call) {
  int64_t experts = trailing(call.in[1], 1), tokens = leading(call.in[1], 1),
          k = trailing(call.in[2], 1);
  std::string problem;
  Gate gate = readGate(call.params, experts, k, problem);
  if (!problem.empty())
    return badCall(call, problem);
  if (k > kMostChoices)
    return tooManyChoices(call, k);
  if (tokens == 0)
    return {};
  GateArgs args{experts,
                k,
                gate.score,
                gate.scoreFirst,
                float(gate.jitterEps),
                {gate.renorm, false, float(gate.renormEpsilon), float(gate.renormClampMin),
                 float(gate.scale)}};
  routeBack<<<blocksOfWarps(std::min<int64_t>(tokens, kMostWarps)), kWarpBlock, 0, call.stream()>>>(
      Reader(call.in[0]), Reader(call.in[1]), call.input<int32_t>(2), call.output<float>(0), tokens,
      args, call.context.errorFlag);
  return launched(call);
}

Status ops::limit_grad(const Call &call) {
  int64_t k = trailing(call.in[0], 1), tokens = leading(call.in[0], 1);
  if (k > kMostChoices)
    return tooManyChoices(call, k);
  if (tokens == 0)
    return {};
  std::string_view renorm = call.params.text("renorm");
  limitBack<<<blocksOfThreads(tokens), kWarpBlock, 0, call.stream()>>>(
      Reader(call.in[0]), Reader(call.in[1]), call.input<int32_t>(2), call.output<float>(0), tokens,
      k,
      {renorm != "none", renorm == "after", float(call.params.real("renorm_epsilon")),
       float(call.params.real("renorm_clamp_min")), float(call.params.real("scale", 1))});
  return launched(call);
}

Status ops::choice_dots(const Call &call) {
  int64_t choices = call.in[2].elements(), k = trailing(call.in[2], 1),
          width = trailing(call.in[0], 1);
  if (choices == 0)
    return {};
  if (inPacks(width, call.in[0], call.in[1]))
    return withFloat(call.in[0].dtype, [&]<typename T>(T) {
      const int64_t tokens = choices / k;
      dotTokens<T><<<blocksOfWarps(tokens), kWarpBlock, 0, call.stream()>>>(
          call.input<T>(0), Reader(call.in[1]), call.input<int32_t>(2), call.output<float>(0),
          tokens, k, width, leading(call.in[0], 1), call.context.errorFlag);
      return launched(call);
    });
  dotRows<<<blocksOfWarps(choices), kWarpBlock, 0, call.stream()>>>(
      Reader(call.in[0]), Reader(call.in[1]), call.input<int32_t>(2), call.output<float>(0),
      choices, k, width, leading(call.in[0], 1), call.context.errorFlag);
  return launched(call);
}

} // namespace moira::rt::cuda
