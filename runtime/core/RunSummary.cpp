//===- RunSummary.cpp - what a run tells at its end -----------------------===//
// See RunSummary.h.
//===----------------------------------------------------------------------===//
#include "RunSummary.h"

#include "moira/rt/Agree.h"
#include "moira/rt/Box.h"

#include <algorithm>
#include <cstring>

namespace moira::rt {

Expected<std::vector<RankFigures>> gatherFigures(const ProgramRunner &executor,
                                                 Communicator &communicator) {
  RankFigures mine = executor.figures();
  std::vector<RankFigures> all(communicator.size());
  if (Status s = communicator.allGather(worldGroup(communicator), &mine, all.data(), sizeof mine,
                                        "gathering figures");
      !s)
    return s;
  return all;
}

/// Collective: every rank's list of plain data, in rank order.
template <typename T>
static Expected<std::vector<std::vector<T>>>
gatherLists(std::span<const T> mine, Communicator &communicator, const std::string &what) {
  std::string bytes(reinterpret_cast<const char *>(mine.data()), mine.size_bytes());
  Expected<std::vector<std::string>> all = gatherStrings(bytes, communicator, what);
  if (!all)
    return all.takeStatus();
  std::vector<std::vector<T>> lists(all->size());
  for (size_t r = 0; r < lists.size(); ++r) {
    lists[r].resize((*all)[r].size() / sizeof(T));
    std::memcpy(lists[r].data(), (*all)[r].data(), (*all)[r].size());
  }
  return lists;
}

Expected<TimeShares> gatherTimes(const ProgramRunner &runner,
                                 std::span<const fb::Program *const> programs,
                                 Communicator &communicator) {
  TimeShares shares;
  for (size_t p = 0; p < programs.size(); ++p) {
    auto all =
        gatherLists<double>(runner.instructionSeconds(p), communicator, "gathering the times");
    if (!all)
      return all.takeStatus();
    double ranks = static_cast<double>(all->size());
    for (size_t i = 0; i < (*all)[0].size(); ++i) {
      double sum = 0, least = (*all)[0][i];
      for (const std::vector<double> &rank : *all) {
        sum += rank[i];
        least = std::min(least, rank[i]);
      }
      bool exchanges =
          programs[p]->instrs()->Get(static_cast<unsigned>(i))->kind() == fb::InstrKind::collective;
      (exchanges ? shares.exchange : shares.compute) += (exchanges ? least : sum / ranks);
      shares.waiting += exchanges ? sum / ranks - least : 0;
    }
  }
  return shares;
}

Expected<std::vector<RankProfile>> gatherProfiles(const RankProfile &mine,
                                                  Communicator &communicator) {
  auto events = gatherLists<RankProfile::Event>(mine.events, communicator, "gathering the profile");
  if (!events)
    return events.takeStatus();
  auto spans = gatherLists<RankProfile::Span>(mine.spans, communicator, "gathering the steps");
  if (!spans)
    return spans.takeStatus();
  std::vector<RankProfile> profiles(events->size());
  for (size_t r = 0; r < profiles.size(); ++r) {
    profiles[r].rank = static_cast<int>(r);
    profiles[r].events = std::move((*events)[r]);
    profiles[r].spans = std::move((*spans)[r]);
  }
  return profiles;
}

std::optional<DropCount> countDrops(const fb::Program &program,
                                    std::span<const TensorRef> outputs) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (program.outputs()->Get(i)->name()->string_view() != "dropped_choices" ||
        outputs[i].elements() != 2 || !isFloat(outputs[i].dtype))
      continue;
    double counts[2];
    convertRun(counts, fb::DType::f64, outputs[i].data, outputs[i].dtype, 2);
    return DropCount{counts[0], counts[1]};
  }
  return std::nullopt;
}

/// Times of the last generation.
static std::string summarizeGeneration(const RankGeneration &loop, int64_t batch) {
  std::vector<double> sorted = loop.times().decode;
  std::string text = format("generated %lld tokens in each of %lld rows: prefill %.3f ms",
                            static_cast<long long>(loop.steps()), static_cast<long long>(batch),
                            loop.times().prefill * 1e3);
  if (sorted.empty())
    return text + "\n";
  std::sort(sorted.begin(), sorted.end());
  double median = sorted[sorted.size() / 2];
  return text + format(", decode median %.3f ms a step (%.3f to %.3f), %.1f tokens/s\n",
                       median * 1e3, sorted.front() * 1e3, sorted.back() * 1e3,
                       static_cast<double>(batch) / median);
}

/// What the time of a training run went into.
static std::string timeText(const TimeShares &shares, const RankTraining &training) {
  LoopTimes times = training.times();
  auto percent = [&](double seconds) { return 100 * seconds / times.whole; };
  double saving = times.saving, reading = times.reading;
  if (shares.compute + shares.exchange == 0) // the device does not say
    return format(
        "%.1f %% of the time saving, %.1f %% reading batches; of %.3f s, in which it makes "
        "%.0f tokens/s\n",
        percent(saving), percent(reading), times.whole,
        training.tokensPerSecond() * training.seconds() / times.whole);
  double rest = times.whole - shares.compute - shares.exchange - shares.waiting - saving - reading;
  return format("%.1f %% of the time computing, %.1f %% exchanging, %.1f %% waiting for slower "
                "ranks, %.1f %% saving, %.1f %% reading batches, %.1f %% besides; of %.3f s, in "
                "which it makes %.0f tokens/s\n",
                percent(shares.compute), percent(shares.exchange), percent(shares.waiting),
                percent(saving), percent(reading), percent(std::max(0.0, rest)), times.whole,
                training.tokensPerSecond() * training.seconds() / times.whole);
}

std::string summarize(const RunOptions &options, const LaunchInfo &launch, const Ranks &ranks,
                      const RunSession &session, const std::vector<RankFigures> &figures) {
  const fb::Program &program = *session.program;
  std::string mesh = program.reference() ? "" : meshText(session.plan->plan());
  std::string where = launch.size > 1          ? "as processes of " + launch.launcher
                      : ranks.worldSize() == 1 ? std::string("in this process")
                                               : std::string("as threads of this process");
  std::string text =
      format("%s: program %s%s, %d rank%s%s%s%s %s, %d library threads each\n",
             options.plan.c_str(), program.name()->c_str(), session.f64 ? " in f64" : "",
             ranks.worldSize(), ranks.worldSize() == 1 ? "" : "s", mesh.empty() ? "" : " (",
             mesh.c_str(), mesh.empty() ? "" : ")", where.c_str(), ranks.threadsPerRank());
  text += format("load %.3f s, step %.3f s, retries %u", session.loadSeconds, session.stepSeconds,
                 figures[0].retries);
  if (program.bound_max() > 0)
    text += format(", ragged bound %llu (planned %llu, at most %llu)",
                   static_cast<unsigned long long>(figures[0].bound),
                   static_cast<unsigned long long>(program.bound_initial()),
                   static_cast<unsigned long long>(program.bound_max()));
  text += "\n";

  if (!session.repeats.empty()) {
    std::vector<double> sorted = session.repeats;
    std::sort(sorted.begin(), sorted.end());
    double median = sorted[sorted.size() / 2];
    const fb::ModelInfo &info = *session.plan->plan().info();
    text += format("repeated %zu times: median %.3f ms (%.3f to %.3f), %.0f tokens/s\n",
                   sorted.size(), median * 1e3, sorted.front() * 1e3, sorted.back() * 1e3,
                   static_cast<double>(info.batch() * info.seq()) / median);
  }

  if (!session.trainings.empty()) {
    const RankTraining &training = *session.trainings[0];
    text += format("trained %llu steps in %.3f s, %.0f tokens/s, loss %.5f to %.5f\n",
                   static_cast<unsigned long long>(training.steps()), training.seconds(),
                   training.tokensPerSecond(), training.firstLoss(), training.lastLoss());
    if (session.shares && training.times().whole > 0)
      text += timeText(*session.shares, training);
  }

  if (session.task)
    text += summarizeGeneration(*session.loops[0], session.task->batch());

  if (session.drops)
    text += format(
        "%.0f of %.0f choices dropped (%.2f %%), over the experts' capacity\n",
        session.drops->dropped, session.drops->offered,
        session.drops->offered > 0 ? 100 * session.drops->dropped / session.drops->offered : 0.0);

  std::string arenas;
  for (size_t i = 0; i < session.arenaSizes.size(); ++i)
    arenas += format("%s %s %llu", i ? "," : "", program.arenas()->Get(i)->name()->c_str(),
                     static_cast<unsigned long long>(session.arenaSizes[i]));
  text += format("memory planned for each rank: %llu bytes (%s) =%s\n",
                 static_cast<unsigned long long>(figures[0].planned),
                 byteText(figures[0].planned).c_str(), arenas.c_str());
  // All ranks of a plan need the same; a few are enough to see it.
  constexpr size_t kShown = 16;
  std::string list;
  uint64_t staging = 0;
  for (size_t r = 0; r < figures.size(); ++r) {
    staging = std::max(staging, figures[r].staging);
    if (r < kShown)
      list += format("%srank %zu allocated %llu bytes", r ? ", " : "", r,
                     static_cast<unsigned long long>(figures[r].allocated));
  }
  text += list;
  bool equal = std::all_of(figures.begin(), figures.end(),
                           [](const RankFigures &f) { return f.planned == f.allocated; });
  text += equal ? "; as planned" : "; NOT as planned";
  if (staging)
    text += format("; staging of collectives besides: %llu bytes at most",
                   static_cast<unsigned long long>(staging));
  text += "\n";
  if (session.plugin)
    text +=
        format("device memory besides, rank 0: context %s%s, libraries, workspaces and kernels "
               "%s; %u of %u instructions replayed from graphs\n",
               byteText(figures[0].context).c_str(),
               session.device.shared ? " (of all ranks on the device)" : "",
               byteText(figures[0].libraries).c_str(), figures[0].graphs,
               program.instrs()->size() + (session.second ? session.second->instrs()->size() : 0));
  if (session.task && !options.outputs.empty())
    text += "generated_ids written to " + options.outputs + "\n";
  unsigned stored = 0;
  for (const fb::Output *output : *program.outputs())
    if (output->source()) {
      ++stored; // of a weight: as many as the model has
    } else if (!options.outputs.empty() && !session.task) {
      std::vector<int64_t> shape(output->shape()->begin(), output->shape()->end());
      text += format("%s %s written to %s\n", output->name()->c_str(), shapeText(shape).c_str(),
                     options.outputs.c_str());
    }
  if (stored && !options.outputs.empty())
    text += format("%u results in the checkpoint's layout written to %s\n", stored,
                   options.outputs.c_str());
  if (!options.dumpRouting.empty())
    text += format("choices of %zu router%s written to %s\n", session.routes->routers(),
                   session.routes->routers() == 1 ? "" : "s", options.dumpRouting.c_str());
  return text;
}

} // namespace moira::rt
