#include "moira/Driver/Compiler.h"
int moira::runCompiler(const CompilerOptions &) { return 4; }
