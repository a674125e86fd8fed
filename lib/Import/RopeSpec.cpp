//===- RopeSpec.cpp - frequencies of every rotary scaling -----------------===//
// The formulas, rounded step by step to float as the published implementation rounds them: a
// difference of one unit in the last place of a frequency shows at positions in the thousands.
// Powers are rounded once from double.
//===----------------------------------------------------------------------===//
#include "moira/Import/RopeSpec.h"

#include <algorithm>
#include <cmath>
#include <numbers>

using namespace moira;

namespace {

float power(float base, float exponent) {
  return static_cast<float>(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
}

/// base^(2i/dim) for every pair.
std::vector<float> wavelengths(float base, int64_t dim) {
  std::vector<float> out;
  for (int64_t i = 0; i < dim; i += 2)
    out.push_back(power(base, static_cast<float>(i) / static_cast<float>(dim)));
  return out;
}

/// How much yarn scales by beyond 1.
double yarnScale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

} // namespace

RopeSpec::Table RopeSpec::table(int64_t length) const {
  const float f = static_cast<float>(factor);
  float base = static_cast<float>(theta);
  if (scaling == Scaling::dynamic && static_cast<double>(length) > positions) {
    float stretch = f * static_cast<float>(length) / static_cast<float>(positions) -
                    static_cast<float>(factor - 1);
    base *= power(stretch, static_cast<float>(static_cast<double>(dim) / (dim - 2.0)));
  }
  std::vector<float> waves = wavelengths(base, dim);
  const bool beyond = static_cast<double>(length) > originalPositions;
  Table out;
  auto add = [&](float frequency) { out.frequencies.push_back(frequency); };

  switch (scaling) {
  case Scaling::none:
  case Scaling::dynamic:
    for (float wave : waves)
      add(1.0f / wave);
    break;
  case Scaling::linear:
    for (float wave : waves)
      add(1.0f / wave / f);
    break;
  case Scaling::yarn: {
    // Pairs that turn often within the trained length keep their frequency, those that turn rarely
    // are interpolated, between them a ramp.
    auto pairThatTurns = [&](double times) {
      return dim * std::log(originalPositions / (times * 2 * std::numbers::pi)) /
             (2 * std::log(theta));
    };
    double low = pairThatTurns(betaFast), high = pairThatTurns(betaSlow);
    if (truncate) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, static_cast<double>(dim - 1));
    if (low == high)
      high += 0.001;
    for (size_t i = 0; i < waves.size(); ++i) {
      float ramp =
          (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low);
      float kept = 1.0f - std::clamp(ramp, 0.0f, 1.0f);
      float interpolated = 1.0f / (f * waves[i]);
      float left = interpolated * (1.0f - kept), right = 1.0f / waves[i] * kept;
      add(left + right);
    }
    out.factor = attentionFactor ? *attentionFactor
                 : mscale && mscaleAllDim
                     ? yarnScale(factor, mscale) / yarnScale(factor, mscaleAllDim)
                     : yarnScale(factor, 1);
    break;
  }
  case Scaling::longrope: {
    const std::vector<double> &divisors = beyond && !longFactor ? longDivisors : shortDivisors;
    for (size_t i = 0; i < waves.size(); ++i)
      add(1.0f / (static_cast<float>(divisors[i]) * waves[i]));
    if (longFactor)
      out.factor = beyond ? *longFactor : *shortFactor;
    else if (attentionFactor)
      out.factor = *attentionFactor;
    else if (factor > 1)
      out.factor = std::sqrt(1 + std::log(factor) / std::log(originalPositions));
    break;
  }
  case Scaling::llama3: {
    const float context = static_cast<float>(originalPositions),
                low = static_cast<float>(lowFrequencyFactor),
                range = static_cast<float>(highFrequencyFactor - lowFrequencyFactor);
    const float longest = static_cast<float>(originalPositions / lowFrequencyFactor),
                shortest = static_cast<float>(originalPositions / highFrequencyFactor);
    for (float wave : waves) {
      float frequency = 1.0f / wave;
      float turn = static_cast<float>(2 * std::numbers::pi) / frequency;
      if (turn > longest) {
        frequency /= f;
      } else if (turn >= shortest) {
        float smooth = (context / turn - low) / range;
        float scaled = (1.0f - smooth) * frequency / f, kept = smooth * frequency;
        frequency = scaled + kept;
      }
      add(frequency);
    }
    break;
  }
  }
  return out;
}

double RopeSpec::scoreFactor() const {
  if (scaling == Scaling::none || !mscaleAllDim)
    return 1;
  double scale = yarnScale(factor, mscaleAllDim);
  return scale * scale;
}
