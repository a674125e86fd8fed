//===- Status.h - errors with stable ids ------------------------*- C++ -*-===//
// What every fallible function of the runtime returns. An Error carries one or more diagnostics, so
// that all problems found are reported at once. Plain C++20, no exceptions cross a public boundary,
// no LLVM: the compiler includes this header too.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_RT_STATUS_H
#define MOIRA_RT_STATUS_H

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace moira::rt {

/// Stable ids of user-visible errors; the number is what `MOE-nnnn` shows.
enum class ErrorId : int {
#define MOIRA_ERROR(symbol, number, exitCode, title) symbol = number,
#include "moira/rt/Errors.def"
};

/// Process exit code that docs promise for `id` (1 usage, 2 invalid input, 3 infeasible, 4
/// internal, 5 rank lost or I/O).
int exitCodeOf(ErrorId id);

/// One problem: id, and a message "what, where, numbers; what to do".
struct Diagnostic {
  ErrorId id;
  std::string message;
};

/// Zero or more problems. Empty means success. Order is the order of discovery.
class [[nodiscard]] Status {
public:
  Status() = default;
  Status(ErrorId id, std::string message) { add(id, std::move(message)); }
  bool ok() const { return problems.empty(); }
  explicit operator bool() const { return ok(); }
  void add(ErrorId id, std::string message) { problems.push_back({id, std::move(message)}); }
  void append(Status other) {
    for (Diagnostic &d : other.problems)
      problems.push_back(std::move(d));
  }
  const std::vector<Diagnostic> &diagnostics() const { return problems; }
  /// "error MOE-0104: …" lines, at most `limit` of them and then a count of the rest.
  std::string str(size_t limit = 20) const;
  /// The exit code of the first problem; 0 on success.
  int exitCode() const;

private:
  std::vector<Diagnostic> problems;
};

/// A value or a failed Status.
template <typename T> class [[nodiscard]] Expected {
public:
  Expected(T value) : value(std::move(value)) {}
  Expected(Status error) : error(std::move(error)) {}
  explicit operator bool() const { return value.has_value(); }
  T &operator*() { return *value; }
  const T &operator*() const { return *value; }
  T *operator->() { return &*value; }
  const T *operator->() const { return &*value; }
  const Status &status() const { return error; }
  Status takeStatus() { return std::move(error); }

private:
  std::optional<T> value;
  Status error;
};

/// printf-style std::string, for messages.
std::string format(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

} // namespace moira::rt

#endif // MOIRA_RT_STATUS_H
