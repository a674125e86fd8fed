//===- Schedule.h - learning rates by step ----------------------*- C++ -*-===//
// A learning rate for every step, computed on the host and given to the plan as its input `lr`.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_SCHEDULE_H
#define MOIRA_RT_SCHEDULE_H

#include "moira/rt/Status.h"

#include <cstdint>
#include <string>
#include <string_view>

namespace moira::rt {

/// A rate that rises linearly over the first `warmup` steps, to `peak` at the step `warmup`, and
/// then goes as `shape` says. Steps count from 1.
struct Schedule {
  enum class Shape {
    constant,   ///< peak
    linear,     ///< a line from peak at `warmup` to `least` at `steps`
    cosine,     ///< half a wave from peak at `warmup` to `least` at `steps`
    inverseSqrt ///< peak · sqrt(max(warmup, 1) / step)
  };
  Shape shape = Shape::constant;
  double peak = 0;
  double least = 0; ///< linear and cosine: from `steps` on
  uint64_t warmup = 0, steps = 0;

  double at(uint64_t step) const;

  /// "cosine,warmup=100,steps=1000,least=1e-5": a shape (constant, linear, cosine, inverse-sqrt),
  /// and what differs from 0. BadUsage with every problem; linear and cosine need steps > warmup.
  static Expected<Schedule> parse(std::string_view text, double peak);
};

} // namespace moira::rt

#endif // MOIRA_RT_SCHEDULE_H
