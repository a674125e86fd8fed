//===- CommConformance.h - what every communicator must do ------*- C++ -*-===//
// One suite that each rank of a world runs; threads and MPI both must pass it. Expected values are
// worked out by each rank alone from everybody's inputs, to the bit.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TEST_UNIT_COMMCONFORMANCE_H
#define MOIRA_TEST_UNIT_COMMCONFORMANCE_H

#include "moira/rt/Communicator.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

namespace moira::rt::testing {

/// Runs the suite as one rank of `c`. Returns the problems found, empty if none.
class CommConformance {
public:
  CommConformance(Communicator &c, uint64_t seed) : comm(c), seed(seed) {}

  std::string run() {
    for (const Group &g : groups())
      everything(g);
    mixed();
    unsupported();
    return problems;
  }

  /// The world, this rank alone, and both sides of each way to cut the world into rows and columns.
  std::vector<Group> groups() const {
    std::vector<Group> all;
    int size = comm.size(), me = comm.rank();
    auto add = [&](int first, int count, int step) {
      Group g;
      for (int i = 0; i < count; ++i)
        g.members.push_back(first + i * step);
      g.self = (me - first) / step;
      all.push_back(g);
    };
    for (int inner = 1; inner <= size; ++inner)
      if (size % inner == 0) {
        add(me / inner * inner, inner, 1);
        add(me % inner, size / inner, inner);
      }
    return all;
  }

private:
  using Bytes = std::vector<unsigned char>;

  void check(bool ok, const std::string &what) {
    if (!ok && problems.size() < 2000)
      problems += "rank " + std::to_string(comm.rank()) + ": " + what + "\n";
  }
  void check(const Status &s, const std::string &what) { check(s.ok(), what + ": " + s.str()); }

  /// Input of any rank in the n-th collective: every rank can make every rank's.
  template <typename T> std::vector<T> input(int rank, size_t count) const {
    std::mt19937_64 engine(seed * 1000003 + uint64_t(rank) * 7919 + step);
    std::vector<T> v(count);
    for (T &x : v)
      if constexpr (std::is_floating_point_v<T>)
        x = T(std::ldexp(double(int64_t(engine()) >> 20),
                         int(engine() % 40) - 50)); // many exponents: order shows
      else
        x = T(engine());
    return v;
  }

  static float wide(uint16_t v) {
    uint32_t bits = uint32_t(v) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
  }
  /// Nearest bf16 by trying the neighbours; ties to even.
  static uint16_t narrow(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    uint16_t low = uint16_t(bits >> 16), high = uint16_t(low + 1);
    double below = std::abs(double(f) - double(wide(low))),
           above = std::abs(double(wide(high)) - double(f));
    return below < above || (below == above && low % 2 == 0) ? low : high;
  }

  template <typename T>
  void allReduce(const Group &g, size_t count, fb::DType dtype, fb::Reduce op, bool inPlace) {
    ++step;
    std::vector<std::vector<T>> inputs;
    for (int r : g.members) {
      inputs.push_back(input<T>(r, count));
      if constexpr (std::is_same_v<T, uint16_t>) // bf16: finite numbers only
        for (T &v : inputs.back())
          v = T((v & 0x8fff) | 0x3000);
    }
    std::vector<T> expected(count), in = inputs[size_t(g.self)], out(count, T(77));
    for (size_t i = 0; i < count; ++i) {
      auto load = [&](size_t m) {
        if constexpr (std::is_same_v<T, uint16_t>)
          return wide(inputs[m][i]);
        else if constexpr (std::is_same_v<T, int32_t>)
          return int64_t(inputs[m][i]);
        else
          return inputs[m][i];
      };
      auto join = [&](auto a, auto b) { return op == fb::Reduce::sum ? a + b : std::max(a, b); };
      // Runs of an odd length one after the other, then neighbours in pairs.
      size_t odd = inputs.size();
      while (odd % 2 == 0)
        odd /= 2;
      std::vector<decltype(load(0))> runs;
      for (size_t m = 0; m < inputs.size(); ++m)
        if (m % odd == 0)
          runs.push_back(load(m));
        else
          runs.back() = join(runs.back(), load(m));
      for (; runs.size() > 1; runs.resize(runs.size() / 2))
        for (size_t m = 0; m < runs.size() / 2; ++m)
          runs[m] = join(runs[2 * m], runs[2 * m + 1]);
      auto value = runs[0];
      if constexpr (std::is_same_v<T, uint16_t>)
        expected[i] = narrow(value);
      else
        expected[i] = T(value);
    }
    std::string what =
        format("all_reduce %s of %zu %s over %zu%s", fb::EnumNameReduce(op), count,
               fb::EnumNameDType(dtype), g.members.size(), inPlace ? " in place" : "");
    check(comm.allReduce(g, in.data(), inPlace ? in.data() : out.data(), count, dtype, op, what),
          what);
    const std::vector<T> &got = inPlace ? in : out;
    check(count == 0 || std::memcmp(got.data(), expected.data(), count * sizeof(T)) == 0,
          what + ": wrong bits");
    check(inPlace || in == inputs[size_t(g.self)], what + ": input changed");
  }

  void allToAll(const Group &g, size_t block) {
    ++step;
    Bytes in = input<unsigned char>(comm.rank(), block * g.members.size()), out(in.size() + 1, 77),
          expected(in.size() + 1, 77);
    for (size_t m = 0; m < g.members.size(); ++m) {
      Bytes theirs = input<unsigned char>(g.members[m], block * g.members.size());
      std::copy_n(theirs.begin() + long(block) * g.self, block, expected.begin() + long(block * m));
    }
    std::string what = format("all_to_all of %zu bytes over %zu", block, g.members.size());
    check(comm.allToAll(g, in.data(), out.data(), block, what), what);
    check(out == expected, what + ": wrong bytes");
  }

  void allGather(const Group &g, size_t bytes) {
    ++step;
    Bytes in = input<unsigned char>(comm.rank(), bytes), out(bytes * g.members.size() + 1, 77),
          expected;
    for (int r : g.members) {
      Bytes theirs = input<unsigned char>(r, bytes);
      expected.insert(expected.end(), theirs.begin(), theirs.end());
    }
    expected.push_back(77);
    std::string what = format("all_gather of %zu bytes over %zu", bytes, g.members.size());
    check(comm.allGather(g, in.data(), out.data(), bytes, what), what);
    check(out == expected, what + ": wrong bytes");
  }

  void everything(const Group &g) {
    for (size_t count : {0, 1, 15, 16, 17, 1000, 20011}) {
      for (fb::Reduce op : {fb::Reduce::sum, fb::Reduce::max}) {
        allReduce<float>(g, count, fb::DType::f32, op, count % 2);
        allReduce<double>(g, count, fb::DType::f64, op, count % 3);
        allReduce<int32_t>(g, count, fb::DType::i32, op, true);
        allReduce<uint16_t>(g, count, fb::DType::bf16, op, false);
      }
      allToAll(g, count);
      allGather(g, count);
    }
    check(comm.barrier("barrier"), "barrier");
  }

  /// Collectives of different groups in one common random order.
  void mixed() {
    std::mt19937_64 order(seed);
    std::vector<Group> all = groups();
    for (int i = 0; i < 300; ++i) {
      const Group &g = all[order() % all.size()];
      size_t n = order() % 3000;
      switch (order() % 4) {
      case 0:
        allToAll(g, n);
        break;
      case 1:
        allGather(g, n);
        break;
      case 2:
        allReduce<float>(g, n, fb::DType::f32, fb::Reduce::sum, n % 2);
        break;
      default:
        check(comm.barrier("barrier between"), "barrier between");
      }
    }
  }

  /// Refused on every rank alike, and the communicator stays usable.
  void unsupported() {
    Group world = groups()[1]; // inner = 1: all ranks
    int64_t value = 1;
    check(!comm.allReduce(world, &value, &value, 1, fb::DType::i64, fb::Reduce::sum, "i64").ok(),
          "all_reduce of i64 must fail");
    Group foreign{{comm.rank() + 1000}, 0};
    check(!comm.allGather(foreign, &value, &value, 8, "foreign").ok(),
          "a group without this rank must fail");
    Group outside{{comm.rank()}, 1};
    check(!comm.allGather(outside, &value, &value, 8, "outside").ok(),
          "an index outside the group must fail");
    check(comm.barrier("after refusals"), "barrier after refusals");
  }

  Communicator &comm;
  uint64_t seed;
  uint64_t step = 0;
  std::string problems;
};

} // namespace moira::rt::testing

#endif // MOIRA_TEST_UNIT_COMMCONFORMANCE_H
