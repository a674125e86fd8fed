//===- CheckNumbers.h - numbers on a command line ---------------*- C++ -*-===//
// What CLI11 says of a value that is no number names neither the value's option nor what it takes,
// and it takes -1 for the largest unsigned number.
//===----------------------------------------------------------------------===//
#ifndef MOIRA_TOOLS_CHECKNUMBERS_H
#define MOIRA_TOOLS_CHECKNUMBERS_H

#include <CLI/CLI.hpp>
#include <string>

namespace moira::tool {

/// Has every option of `app` that takes a number check the text of its value first.
inline void checkNumbers(CLI::App &app) {
  for (CLI::Option *option : app.get_options()) {
    std::string type = option->get_type_name();
    if (type != "INT" && type != "UINT" && type != "FLOAT")
      continue;
    option->check([type](const std::string &value) -> std::string {
      int64_t whole = 0;
      double number = 0;
      if (type == "FLOAT")
        return CLI::detail::lexical_cast(value, number) ? "" : value + " is no number";
      if (type == "UINT" && value.rfind('-', 0) == 0)
        return value + " must be 0 or more";
      uint64_t large = 0;
      bool read = type == "UINT" ? CLI::detail::lexical_cast(value, large)
                                 : CLI::detail::lexical_cast(value, whole);
      return read ? "" : value + " is no whole number";
    });
  }
}

} // namespace moira::tool

#endif // MOIRA_TOOLS_CHECKNUMBERS_H
