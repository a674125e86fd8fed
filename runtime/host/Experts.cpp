//===- Experts.cpp - tokens to expert rows and back -------------------------===//
// select, select_tokens, pack, regroup, ungroup, combine, grouped_matmul,
// grouped_bias. The order of rows is the contract of
// docs/architecture.md, section 2. Moving rows is all copies, so these serve the fast flavor too,
// besides grouped_matmul and combine. Ids, counts, groups and positions are data: all of them are
// checked before they become an address.
//===----------------------------------------------------------------------===//
#include "GroupedProduct.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace moira::rt::host::ref {

namespace {

/// A stable counting sort of rows (one for each token and choice) into `slots` slots of `capacity`
/// rows, each slot holding `bins` consecutive bins.
struct Sort {
  int64_t slots, bins, capacity;
  std::vector<int64_t> binOf; // per row; -1: not for any slot here
};

/// Rows of x (one a token, k rows each), multiplied by `weights` (one a row; null: 1), to their
/// places. counts [slots, bins] say how many rows of each bin were placed; places past a slot's
/// count are zero; pos per row is slot * capacity + place, or -1. Returns the rows needed in the
/// fullest slot.
template <typename S, typename W>
int64_t placeRows(const Sort &sort, const S *x, const W *weights, int64_t width, int64_t k, S *out,
                  int32_t *counts, int32_t *pos) {
  std::vector<int64_t> next(size_t(sort.slots * sort.bins), 0);
  for (int64_t bin : sort.binOf)
    if (bin >= 0)
      ++next[size_t(bin)];
  int64_t needed = 0;
  for (int64_t slot = 0; slot < sort.slots; ++slot) {
    int64_t at = 0;
    for (int64_t i = slot * sort.bins; i < (slot + 1) * sort.bins; ++i) {
      int64_t size = next[size_t(i)];
      counts[i] = int32_t(std::clamp<int64_t>(sort.capacity - at, 0, size));
      next[size_t(i)] = at;
      at += size;
    }
    needed = std::max(needed, at);
    int64_t filled = std::min(at, sort.capacity);
    std::fill_n(out + (slot * sort.capacity + filled) * width, (sort.capacity - filled) * width,
                S(0));
  }
  for (size_t row = 0; row < sort.binOf.size(); ++row) {
    int64_t bin = sort.binOf[row];
    pos[row] = -1;
    if (bin < 0)
      continue;
    int64_t place = next[size_t(bin)]++;
    if (place >= sort.capacity)
      continue;
    int64_t target = bin / sort.bins * sort.capacity + place;
    pos[row] = int32_t(target);
    const S *from = x + int64_t(row) / k * width;
    if (!weights)
      std::copy_n(from, width, out + target * width);
    else
      std::transform(from, from + width, out + target * width,
                     [&](S v) { return S(W(v) * weights[row]); });
  }
  return needed;
}

/// What select and pack multiply rows by, or null.
template <typename S> const Accumulator<S> *rowWeights(const Call &call) {
  return call.in.size() > 3 ? call.input<Accumulator<S>>(3) : nullptr;
}

Status badExpert(const Call &call, int64_t row, int64_t k, int32_t id, int64_t experts) {
  return badCall(call, format("token %lld chooses expert %d of 0..%lld", (long long)(row / k), id,
                              (long long)experts - 1));
}

int32_t foldNeed(int32_t before, int64_t needed) {
  return int32_t(std::max<int64_t>(before, std::min<int64_t>(needed, INT32_MAX)));
}

/// The segments of a counts tensor [P, 1, C] or [1, P, C]; fails unless they divide C.
Status checkSegments(const Call &call, int64_t columns) {
  if (Status s = checkParam(call, "segments", 1, std::max<int64_t>(columns, 1)); !s)
    return s;
  if (int64_t segments = call.params.integer("segments"); columns % segments != 0)
    return badCall(call, format("%lld segments do not divide %lld counts", (long long)segments,
                                (long long)columns));
  return {};
}

/// Calls move(slotRow, groupedRow, rows) for every run of rows that is contiguous both in the slots
/// [P, B] and in (local expert, segment, rank) order. Returns the number of rows. Counts are
/// checked against B and R first.
template <typename Move>
Expected<int64_t> forEachRun(const Call &call, const TensorRef &counts, int64_t capacity,
                             int64_t room, Move move) {
  int64_t ranks = counts.shape[0], columns = counts.shape[2];
  if (Status s = checkSegments(call, columns); !s)
    return s;
  std::span<const int32_t> all(static_cast<const int32_t *>(counts.data), size_t(ranks * columns));
  for (int64_t p = 0; p < ranks; ++p)
    if (Status s = checkCounts(call, all.subspan(size_t(p * columns), size_t(columns)), capacity,
                               "counts of one slot");
        !s)
      return s;
  if (Status s = checkCounts(call, all, room, "counts"); !s)
    return s;
  std::vector<int64_t> at(static_cast<size_t>(ranks));
  for (int64_t p = 0; p < ranks; ++p)
    at[size_t(p)] = p * capacity;
  int64_t grouped = 0;
  for (int64_t column = 0; column < columns; ++column) // (local expert, segment)
    for (int64_t p = 0; p < ranks; ++p) {
      int64_t rows = all[size_t(p * columns + column)];
      move(at[size_t(p)], grouped, rows);
      at[size_t(p)] += rows;
      grouped += rows;
    }
  return grouped;
}

} // namespace

namespace {

/// What select does with rows of any type; need stands behind ids.
template <typename V, typename W>
Status selectRows(const Call &call, const TensorRef &ids, const TensorRef &need, const V *x,
                  const W *weights, int64_t width) {
  int64_t k = std::max<int64_t>(trailing(ids, 1), 1), rows = ids.elements();
  int64_t local = call.out[1].elements(), first = call.params.integer("expert_offset");
  int64_t experts = call.params.integer("experts");
  Sort sort{1, local, call.out[0].shape[0], {}};
  sort.binOf.reserve(size_t(rows));
  for (int64_t row = 0; row < rows; ++row) {
    int32_t id = static_cast<const int32_t *>(ids.data)[row];
    if (id < -1 || id >= experts)
      return badExpert(call, row, k, id, experts);
    int64_t bin = id - first;
    sort.binOf.push_back(id >= 0 && bin >= 0 && bin < local ? bin : -1);
  }
  int64_t needed = placeRows(sort, x, weights, width, k, call.output<V>(0), call.output<int32_t>(1),
                             call.output<int32_t>(2));
  *call.output<int32_t>(3) = foldNeed(*static_cast<const int32_t *>(need.data), needed);
  return {};
}

} // namespace

template <typename S> Status select(const Call &call) {
  return selectRows(call, call.in[1], call.in[2], call.input<S>(0), rowWeights<S>(call),
                    trailing(call.in[0], 1));
}

/// Of rows that are their tokens' numbers.
template <typename> Status select_tokens(const Call &call) {
  const TensorRef &ids = call.in[0];
  std::vector<int32_t> numbers(size_t(leading(ids, 1)));
  std::iota(numbers.begin(), numbers.end(), 0);
  return selectRows<int32_t, int32_t>(call, ids, call.in[1], numbers.data(), nullptr, 1);
}

template <typename S> Status pack(const Call &call) {
  const TensorRef &ids = call.in[1];
  int64_t k = std::max<int64_t>(trailing(ids, 1), 1), rows = ids.elements(),
          width = trailing(call.in[0], 1);
  int64_t slots = call.out[0].shape[1], columns = call.out[1].shape[2];
  if (Status s = checkSegments(call, columns); !s)
    return s;
  int64_t segments = call.params.integer("segments"), experts = call.params.integer("experts");
  int64_t tokens = rows / k, tokensPerSegment = tokens / segments;
  if (experts != columns / segments * slots || tokensPerSegment * segments != tokens)
    return badCall(
        call, format("%lld experts and %lld tokens for %lld slots of %lld counts in %lld segments",
                     (long long)experts, (long long)tokens, (long long)slots, (long long)columns,
                     (long long)segments));
  Sort sort{slots, columns, call.out[0].shape[2], {}};
  sort.binOf.reserve(size_t(rows));
  for (int64_t row = 0; row < rows; ++row) {
    int32_t id = call.input<int32_t>(1)[row];
    if (id < -1 || id >= experts)
      return badExpert(call, row, k, id, experts);
    sort.binOf.push_back(id < 0 ? -1 : id * segments + row / k / tokensPerSegment);
  }
  int64_t needed = placeRows(sort, call.input<S>(0), rowWeights<S>(call), width, k,
                             call.output<S>(0), call.output<int32_t>(1), call.output<int32_t>(2));
  *call.output<int32_t>(3) = foldNeed(*call.input<int32_t>(2), needed);
  return {};
}

template <typename> Status sample_counts(const Call &call) {
  int64_t samples = call.out[0].shape[0], experts = call.out[0].shape[1];
  int64_t choices = call.in[0].elements(), k = std::max<int64_t>(trailing(call.in[0], 1), 1);
  int32_t *counts = call.output<int32_t>(0);
  std::fill_n(counts, samples * experts, 0);
  for (int64_t i = 0; i < choices; ++i) {
    int32_t id = call.input<int32_t>(0)[i];
    if (id < -1 || id >= experts)
      return badExpert(call, i, k, id, experts);
    if (id >= 0)
      ++counts[i / (choices / samples) * experts + id];
  }
  return {};
}

template <typename S> Status regroup(const Call &call) {
  const S *slots = call.input<S>(0);
  S *rows = call.output<S>(0);
  int64_t capacity = call.in[0].shape[2], width = call.in[0].shape[3], room = call.out[0].shape[0];
  Expected<int64_t> count =
      forEachRun(call, call.in[1], capacity, room, [&](int64_t from, int64_t to, int64_t n) {
        std::copy_n(slots + from * width, n * width, rows + to * width);
      });
  if (!count)
    return count.takeStatus();
  std::fill_n(rows + *count * width, (room - *count) * width, S(0));

  int64_t ranks = call.in[1].shape[0], columns = call.in[1].shape[2],
          local = call.out[1].elements();
  int64_t segments = call.params.integer("segments");
  if (local * segments != columns)
    return badCall(call, format("%lld groups for %lld counts in %lld segments", (long long)local,
                                (long long)columns, (long long)segments));
  const int32_t *counts = call.input<int32_t>(1);
  for (int64_t e = 0; e < local; ++e) {
    int64_t size = 0;
    for (int64_t p = 0; p < ranks; ++p)
      for (int64_t s = 0; s < segments; ++s)
        size += counts[p * columns + e * segments + s];
    call.output<int32_t>(1)[e] = int32_t(size);
  }
  return {};
}

template <typename S> Status ungroup(const Call &call) {
  const S *rows = call.input<S>(0);
  S *slots = call.output<S>(0);
  int64_t capacity = call.out[0].shape[2], width = call.out[0].shape[3];
  std::fill_n(slots, call.out[0].elements(), S(0));
  Expected<int64_t> count = forEachRun(
      call, call.in[1], capacity, call.in[0].shape[0], [&](int64_t to, int64_t from, int64_t n) {
        std::copy_n(rows + from * width, n * width, slots + to * width);
      });
  return count ? Status() : count.takeStatus();
}

template <typename S> Status grouped_matmul(const Call &call) {
  return groupedProduct<S>(call,
                           [](const S *x, const S *w, S *out, int64_t m, int64_t n, int64_t k) {
                             refProduct(x, w, out, m, n, k);
                             return Status();
                           });
}

template <typename S> Status grouped_bias(const Call &call) {
  int64_t room = call.in[0].shape[0], width = call.in[0].elements() / std::max<int64_t>(room, 1);
  std::span<const int32_t> groups(call.input<int32_t>(1), size_t(call.in[1].elements()));
  if (Status s = checkCounts(call, groups, room, "groups"); !s)
    return s;
  const S *rows = call.input<S>(0), *bias = call.input<S>(2);
  S *out = std::copy_n(rows, room * width, call.output<S>(0)) - room * width;
  if (call.params.integer("part") != 0)
    return {};
  for (int32_t size : groups) {
    for (int64_t i = 0; i < size * width; ++i)
      out[i] = S(double(out[i]) + double(bias[i % width]));
    out += size * width;
    bias += width;
  }
  return {};
}

template <typename S> Status combine(const Call &call) {
  const S *rows = call.input<S>(0);
  const Accumulator<S> *weights = call.input<Accumulator<S>>(2);
  const int32_t *pos = call.input<int32_t>(1);
  int64_t k = trailing(call.in[1], 1), tokens = leading(call.in[1], 1);
  int64_t width = trailing(call.in[0], 1), available = leading(call.in[0], 1);
  std::vector<double> sum(static_cast<size_t>(width));
  for (int64_t t = 0; t < tokens; ++t) {
    std::fill(sum.begin(), sum.end(), 0.0);
    for (int64_t j = t * k; j < (t + 1) * k; ++j) {
      if (Status s = checkRow(call, t, pos[j], available); !s)
        return s;
      for (int64_t d = 0; d < width && pos[j] >= 0; ++d)
        sum[size_t(d)] += double(weights[j]) * double(rows[pos[j] * width + d]);
    }
    if (Status s = withEither<S>(call.out[0].dtype,
                                 [&]<typename O>(O) {
                                   std::transform(sum.begin(), sum.end(),
                                                  call.output<O>(0) + t * width,
                                                  [](double v) { return O(v); });
                                   return Status();
                                 });
        !s)
      return s;
  }
  return {};
}

#define INSTANTIATE(name)                                                                          \
  template Status name<float>(const Call &);                                                       \
  template Status name<double>(const Call &);                                                      \
  template Status name<Bf16>(const Call &);
INSTANTIATE(select)
INSTANTIATE(select_tokens)
INSTANTIATE(pack)
INSTANTIATE(sample_counts)
INSTANTIATE(regroup)
INSTANTIATE(ungroup)
INSTANTIATE(grouped_matmul)
INSTANTIATE(grouped_bias)
INSTANTIATE(combine)

} // namespace moira::rt::host::ref
