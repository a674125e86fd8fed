//===- Device.h - what a device must be able to do --------------*- C++ -*-===//
// The executor resolves views, parameters and offsets; a device only sees typed pointers.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_DEVICE_H
#define MOIRA_RT_DEVICE_H

#include "moira/rt/Status.h"
#include "plan_generated.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moira::rt {

/// A view with its address: C order, no strides. shape has the bound already multiplied in.
struct TensorRef {
  void *data = nullptr;
  fb::DType dtype = fb::DType::f32;
  std::vector<int64_t> shape;
  int64_t elements() const {
    int64_t n = 1;
    for (int64_t d : shape)
      n *= d;
    return n;
  }
};

/// Parameters of one instruction with rank offsets resolved to integers.
class CallParams {
public:
  std::map<std::string, int64_t, std::less<>> integers;
  std::map<std::string, double, std::less<>> reals;
  std::map<std::string, std::string, std::less<>> texts;
  std::map<std::string, std::vector<double>, std::less<>> realLists;
  int64_t integer(std::string_view name, int64_t fallback = 0) const {
    auto it = integers.find(name);
    return it == integers.end() ? fallback : it->second;
  }
  double real(std::string_view name, double fallback = 0) const {
    auto it = reals.find(name);
    return it == reals.end() ? fallback : it->second;
  }
  std::string_view text(std::string_view name) const {
    auto it = texts.find(name);
    return it == texts.end() ? std::string_view() : std::string_view(it->second);
  }
  std::span<const double> list(std::string_view name) const {
    auto it = realLists.find(name);
    return it == realLists.end() ? std::span<const double>() : it->second;
  }
  /// For a call with the parameter `with`: which of the given optional operands `role` is, counted
  /// from 0 behind those that are never left out; -1 if it is not given.
  int optional(std::string_view role) const {
    std::string_view rest = text("with");
    for (int i = 0; !rest.empty(); ++i) {
      size_t end = std::min(rest.find(' '), rest.size());
      if (rest.substr(0, end) == role)
        return i;
      rest.remove_prefix(std::min(end + 1, rest.size()));
    }
    return -1;
  }
};

/// Optional side channels of `route` (--dump-routing, --route-from).
struct RouteHooks {
  /// If not empty: these expert ids [tokens·k] instead of the gate's choice.
  std::span<const int32_t> forcedIds;
  /// If not null: receives per token the selection score of choice k minus that of choice k+1.
  std::vector<float> *gaps = nullptr;
};

/// Which implementation of a call: `fast` is the device's best, `reference` the plain one
/// (f32 or f64).
enum class CallFlavor { fast, reference };

/// Host implementation of the call `name` (Calls.def). The plan verifier has checked shapes, types
/// and parameters. Reference flavor accepts f64 wherever Calls.def says T or A.
Status runHostCall(std::string_view name, CallFlavor flavor, std::span<const TensorRef> inputs,
                   std::span<const TensorRef> outputs, const CallParams &params,
                   const RouteHooks *hooks = nullptr);

} // namespace moira::rt

#endif // MOIRA_RT_DEVICE_H
