//===- Schedule.cpp - learning rates by step ------------------------------===//
// See Schedule.h.
//===----------------------------------------------------------------------===//
#include "moira/rt/Schedule.h"

#include <algorithm>
#include <charconv>
#include <cmath>

namespace moira::rt {

double Schedule::at(uint64_t step) const {
  if (step < warmup)
    return peak * double(step) / double(warmup);
  double done = steps > warmup ? std::min(1.0, double(step - warmup) / double(steps - warmup)) : 1;
  switch (shape) {
  case Shape::constant:
    return peak;
  case Shape::linear:
    return peak + (least - peak) * done;
  case Shape::cosine:
    return least + (peak - least) * 0.5 * (1 + std::cos(done * std::acos(-1.0)));
  case Shape::inverseSqrt:
    return peak *
           std::sqrt(double(std::max<uint64_t>(warmup, 1)) / double(std::max<uint64_t>(step, 1)));
  }
  return peak;
}

Expected<Schedule> Schedule::parse(std::string_view text, double peak) {
  constexpr std::pair<std::string_view, Shape> kShapes[] = {{"constant", Shape::constant},
                                                            {"linear", Shape::linear},
                                                            {"cosine", Shape::cosine},
                                                            {"inverse-sqrt", Shape::inverseSqrt}};
  Schedule schedule;
  schedule.peak = peak;
  Status problems;
  auto fail = [&](const std::string &what) {
    problems.add(ErrorId::BadUsage, "--schedule=" + std::string(text) + ": " + what);
  };
  std::string_view rest = text;
  for (bool first = true; first || !rest.empty(); first = false) {
    std::string_view word = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(rest.size(), word.size() + 1));
    if (first) {
      auto known = std::find_if(std::begin(kShapes), std::end(kShapes),
                                [&](auto &entry) { return entry.first == word; });
      if (known == std::end(kShapes))
        fail("'" + std::string(word) + "' is none of constant, linear, cosine and inverse-sqrt");
      else
        schedule.shape = known->second;
      continue;
    }
    std::string_view name = word.substr(0, word.find('='));
    std::string_view value = name.size() < word.size() ? word.substr(name.size() + 1) : "";
    const char *end = value.data() + value.size();
    std::from_chars_result read{value.data(), std::errc::invalid_argument};
    if (name == "warmup")
      read = std::from_chars(value.data(), end, schedule.warmup);
    else if (name == "steps")
      read = std::from_chars(value.data(), end, schedule.steps);
    else if (name == "least")
      read = std::from_chars(value.data(), end, schedule.least);
    if (read.ec != std::errc() || read.ptr != end || !(schedule.least >= 0))
      fail("'" + std::string(word) + "' is none of warmup=STEPS, steps=STEPS and least=RATE");
  }
  bool ends = schedule.shape == Shape::linear || schedule.shape == Shape::cosine;
  if (problems && ends && schedule.steps <= schedule.warmup)
    fail("it needs steps=STEPS, more than the warm-up's");
  if (!problems)
    return problems;
  return schedule;
}

} // namespace moira::rt
