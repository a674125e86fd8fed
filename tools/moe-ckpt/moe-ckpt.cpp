//===- moe-ckpt.cpp - checks, converts and changes model directories ------===//
//   moe-ckpt export-hf|convert|verify|aggregate|prune|reshard …
// The command: its line is read in Options.cpp, the work is runtime/checkpoint's. stdout is for
// results (help, version, what verify found, which experts prune kept), stderr for everything else.
//===----------------------------------------------------------------------===//
#include "Checksums.h"
#include "Options.h"
#include "SparseLayers.h"
#include "Staging.h"
#include "TrainingSource.h"

#include "moira/rt/OutputFile.h"
#include "moira/rt/TrainingCheckpoint.h"

#include <cstdio>
#include <exception>
#include <filesystem>

using namespace moira;

namespace {

int fail(const rt::Status &status) {
  std::fputs(status.str().c_str(), stderr);
  return status.exitCode();
}

std::string gigabytes(uint64_t bytes) {
  return bytes < 1'000'000'000 ? rt::format("%.1f MB", double(bytes) / 1e6)
                               : rt::format("%.2f GB", double(bytes) / 1e9);
}

int write(const tool::CommandLine &line, ckpt::ModelToWrite model) {
  model.shardBytes = line.shardBytes;
  model.checksums = line.checksums;
  if (rt::Status status = ckpt::writeModel(line.target, model); !status)
    return fail(status);
  uint64_t bytes = 0;
  for (const ckpt::Recipe &recipe : model.tensors)
    bytes += ckpt::bytesOf(recipe.spec.type, ckpt::elementsOf(recipe.spec));
  std::fprintf(stderr, "wrote %zu tensors, %s, to %s\n", model.tensors.size(),
               gigabytes(bytes).c_str(), line.target.c_str());
  return 0;
}

/// Of a directory that has a config.json of a known class: whether every expert is there.
rt::Expected<std::string> verifyExperts(const std::string &directory) {
  rt::Expected<std::unique_ptr<ckpt::ModelSource>> source = ckpt::openModel(directory);
  if (!source)
    return source.takeStatus();
  rt::Expected<ckpt::ClassNames> names = ckpt::ClassNames::of((*source)->config());
  if (!names)
    return names.takeStatus();
  rt::Expected<std::vector<ckpt::SparseLayer>> layers = ckpt::findSparseLayers(*names, **source);
  if (!layers)
    return layers.takeStatus();
  if (layers->empty())
    return names->name() + " without experts";
  return rt::format("%s, %lld experts in each of %zu layers (%s)", names->name().c_str(),
                    static_cast<long long>(layers->front().experts), layers->size(),
                    layers->front().layout->name.c_str());
}

/// A run's directory of checkpoints, or one of its steps.
bool holdsTraining(const std::string &directory) {
  std::error_code error;
  return std::filesystem::exists(directory + "/manifest.json", error) ||
         !rt::listCheckpoints(directory, rt::FileSystem::real()).empty();
}

/// Every byte of the newest checkpoint of a run, or of the step that is named.
int verifyTraining(const std::string &directory) {
  rt::Expected<rt::TrainingCheckpoint> checkpoint = rt::TrainingCheckpoint::open(directory);
  if (!checkpoint)
    return fail(checkpoint.status());
  if (rt::Status status = checkpoint->verify(); !status)
    return fail(status);
  const rt::TrainingManifest &manifest = checkpoint->manifest();
  std::printf("%s: training checkpoint of step %llu, %zu tensors in %zu file%s; all checksums "
              "agree\n",
              checkpoint->path().c_str(), static_cast<unsigned long long>(manifest.progress.step),
              manifest.tensors.size(), manifest.files.size(),
              manifest.files.size() == 1 ? "" : "s");
  return 0;
}

int verify(const tool::CommandLine &line) {
  const std::string &directory = line.sources.front();
  if (holdsTraining(directory)) {
    if (line.checksums)
      return fail({rt::ErrorId::BadUsage,
                   directory + " is a training checkpoint, which has checksums already; "
                               "--write-checksums is for model directories"});
    return verifyTraining(directory);
  }
  rt::Expected<std::string> experts = verifyExperts(directory);
  if (!experts)
    return fail(experts.status());
  if (line.checksums)
    if (rt::Status status = ckpt::writeChecksums(directory); !status)
      return fail(status);
  rt::Expected<ckpt::Verified> verified = ckpt::verifyCheckpoint(directory);
  if (!verified)
    return fail(verified.status());
  std::printf("%s: %llu tensors, %s, in %llu file%s; %s; %s\n", directory.c_str(),
              static_cast<unsigned long long>(verified->tensors),
              gigabytes(verified->bytes).c_str(), static_cast<unsigned long long>(verified->files),
              verified->files == 1 ? "" : "s", experts->c_str(),
              verified->checksums ? "all checksums agree"
                                  : "no checksums (moe-ckpt verify --write-checksums makes some)");
  return 0;
}

int reshard(const tool::CommandLine &line) {
  rt::Expected<rt::TrainingCheckpoint> checkpoint =
      rt::TrainingCheckpoint::open(line.sources.front());
  if (!checkpoint)
    return fail(checkpoint.status());
  if (rt::Status status = ckpt::reshard(*checkpoint, line.target, line.reshard); !status)
    return fail(status);
  std::fprintf(stderr, "wrote step %llu, %zu tensors, to %s\n",
               static_cast<unsigned long long>(checkpoint->manifest().progress.step),
               checkpoint->manifest().tensors.size(), line.target.c_str());
  return 0;
}

/// A model directory, or with --plan and --model the weights in a training checkpoint.
rt::Expected<std::unique_ptr<ckpt::ModelSource>> openSource(const tool::CommandLine &line,
                                                            const std::string &directory) {
  if (!line.plan.empty())
    return ckpt::openTrainingModel(directory, line.plan, line.model);
  if (!holdsTraining(directory))
    return ckpt::openModel(directory);
  return rt::Status(rt::ErrorId::BadUsage,
                    directory + " is a training checkpoint: say with --plan=FILE which plan has "
                                "trained it and with --model=DIR which model it is; moe-ckpt "
                                "export-hf makes a model directory of it");
}

int prune(const tool::CommandLine &line, const ckpt::ModelSource &source) {
  std::map<int64_t, std::vector<int64_t>> kept;
  rt::Expected<ckpt::ModelToWrite> model = ckpt::pruneModel(source, line.prune, &kept);
  if (!model)
    return fail(model.status());
  int code = write(line, std::move(*model));
  if (code != 0)
    return code;
  for (const auto &[layer, list] : kept) {
    std::string text;
    for (int64_t expert : list)
      text += (text.empty() ? "" : ",") + std::to_string(expert);
    std::printf("layer %lld: %s\n", static_cast<long long>(layer), text.c_str());
  }
  return 0;
}

int run(int argc, char **argv) {
  rt::Expected<tool::CommandLine> line = tool::parseCommandLine(argc, argv);
  if (!line)
    return fail(line.status());
  switch (line->command) {
  case tool::Command::help:
    std::fputs(line->helpText.c_str(), stdout);
    return 0;
  case tool::Command::version:
    std::printf("moe-ckpt %s\n", MOIRA_VERSION);
    return 0;
  case tool::Command::verify:
    return verify(*line);
  case tool::Command::reshard:
    return reshard(*line);
  default:
    break;
  }
  std::vector<std::unique_ptr<ckpt::ModelSource>> sources;
  rt::Status problems;
  for (const std::string &directory : line->sources) {
    rt::Expected<std::unique_ptr<ckpt::ModelSource>> source = openSource(*line, directory);
    if (source)
      sources.push_back(std::move(*source));
    else
      problems.append(source.takeStatus());
  }
  if (!problems)
    return fail(problems);
  if (line->command == tool::Command::prune)
    return prune(*line, *sources[0]);
  rt::Expected<ckpt::ModelToWrite> model =
      line->command == tool::Command::exportHf  ? ckpt::copyModel(*sources[0])
      : line->command == tool::Command::convert ? ckpt::convertModel(*sources[0], line->convert)
                                                : ckpt::aggregateModels(*sources[0], *sources[1]);
  if (!model)
    return fail(model.status());
  return write(*line, std::move(*model));
}

} // namespace

int main(int argc, char **argv) {
  rt::openStandardStreams();
  ckpt::removeStagingOnSignals();
  try {
    int code = run(argc, argv);
    rt::Status printed = rt::finishStdout();
    return code == 0 && !printed ? fail(printed) : code;
  } catch (const std::exception &error) {
    return fail(rt::Status(rt::ErrorId::Internal, error.what()));
  }
}
