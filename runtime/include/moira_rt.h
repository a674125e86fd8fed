// moira_rt.h - Moira's runtime for other languages.
// Opens a plan with its weights and runs its program (forward, grad, train, or prefill and decode
// of one that generates) as often as wanted, on the ranks of this process: threads on the host, or
// the first visible GPU for a plan of one rank that is compiled for GPUs. C99; link libmoira_rt.so.
// Functions that can fail return a code that is 0 on success and else the exit code that moe-run
// would give (1 misuse, 2 invalid input, 3 infeasible, 4 internal, 5 rank lost or I/O);
// moira_last_error() then has the text. A session is used by one thread at a time; different
// sessions are independent. A child that is forked has sessions on the host of its own; it leaves
// those on a GPU alone.
#ifndef MOIRA_RT_H
#define MOIRA_RT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moira_session moira_session;

typedef enum {
  MOIRA_F32,
  MOIRA_BF16,
  MOIRA_F16,
  MOIRA_F64,
  MOIRA_I32,
  MOIRA_I64,
  MOIRA_U8
} moira_dtype;

typedef enum {
  MOIRA_MESH = 0,          /* the plan's program for its mesh */
  MOIRA_REFERENCE_F32 = 1, /* its one-rank reference program, which runs no code of the plan */
  MOIRA_REFERENCE_F64 = 2
} moira_program;

/* A global tensor in C order. Names and data belong to the caller for inputs, to the session for
 * outputs. */
typedef struct {
  const char *name;
  moira_dtype dtype;
  int32_t rank;
  const int64_t *shape;
  const void *data;
} moira_tensor;

/* "0.1.0" */
const char *moira_version(void);

/* What failed last on this thread: one line a problem, "error MOE-nnnn: …". Valid until the
 * thread's next call. */
const char *moira_last_error(void);

/* Opens a plan, its weights (a checkpoint directory) and the memory for both. Null on failure.
   Without weights (null) all states are zeros until moira_write_state. */
moira_session *moira_open(const char *plan, const char *weights, moira_program program);
void moira_close(moira_session *session);

/* Runs one step. Inputs are matched by name; optional ones may be left out. After a failure of the
   input (code 2) the session can be used again, after any other it can only be closed. */
int moira_forward(moira_session *session, const moira_tensor *inputs, size_t count);

/* Runs `steps` steps with the same inputs and gives each one's milliseconds: of a GPU from the
   moment at which the inputs are there, by its own clock. A GPU may get some before the first is
   done, so that they follow each other at once; when this returns, all are done. Nothing is
   fetched: outputs stay those of the last moira_forward. What later steps replay is recorded in the
   second one, so give two to warm up. Codes as moira_forward. */
int moira_steps(moira_session *session, const moira_tensor *inputs, size_t count, size_t steps,
                double *milliseconds);

/* Generates `new_tokens` tokens for each row of a plan that is compiled with --task=generate,
   always the one of the largest logit, also past stop tokens. `prompts` are [rows, width] ids, none
   of them padding; `ids` takes [rows, new_tokens]. `milliseconds`, unless null, takes what each of
   the new_tokens steps took by the host's clock, that of the prompts first. Not for models with an
   encoder; leaves no outputs for moira_output. Codes as moira_forward. */
int moira_generate(moira_session *session, const int32_t *prompts, size_t rows, size_t width,
                   size_t new_tokens, int32_t *ids, double *milliseconds);

/* Weights and what else lives from step to step, with their global shapes; data is null. */
size_t moira_state_count(const moira_session *session);
int moira_state(const moira_session *session, size_t index, moira_tensor *state);

/* Gives a state of a program of one rank its elements, in C order and of its own type: from memory
   of the host, or of the session's GPU, where they must be there already. */
int moira_write_state(moira_session *session, size_t index, const void *data);

/* Outputs of the last moira_forward, as MOIRA_F32; valid until the next one. Gradients are shaped
   as the states that they are of, which may be stacks of a checkpoint's tensors. Code 2 if there is
   none of that index. */
size_t moira_output_count(const moira_session *session);
int moira_output(const moira_session *session, size_t index, moira_tensor *output);

/* moe-run PLAN --weights=… --inputs=… --outputs=…: from files to a file. In a process of mpirun,
   srun or torchrun it is also one rank of them as moe-run is, and where another rank is lost the
   process ends; sessions know nothing of launchers. */
int moira_run_files(const char *plan, const char *weights, const char *inputs, const char *outputs,
                    moira_program program);

#ifdef __cplusplus
}
#endif

#endif /* MOIRA_RT_H */
