//===- GenerateBuilder.cpp - the programs that generate tokens ------------===//
// prefill, decode and the reference, of decoders and encoder-decoders. The blocks are
// BlockBuilder's; what is cached, and where a program's tokens stand, is said here.
//
// All rows of a batch share the slot index: prompts stand at the right end of their slots, pads on
// the left are masked. What depends on distances only (rotation, relative biases, windows) needs no
// more than that; sinusoids count the tokens of a row by its mask. Where they leave out pads by
// their id, they do so in a prompt only, as in transformers: a later token stands behind all tokens
// before it, pads or not.
//===----------------------------------------------------------------------===//
#include "moira/Import/GenerateBuilder.h"
#include "Encoder.h"
#include "mlir/Dialect/Func/IR/FuncOps.h"

using namespace mlir;
using namespace moira;

namespace {

enum class Kind { prefill, decode, reference };

class GenerateBuilder : BlockBuilder {
public:
  GenerateBuilder(MLIRContext &context, const ModelSpec &spec, const WeightTable &weights,
                  const ProgramShape &shape)
      : BlockBuilder(context, spec, weights, shape.batch, shape.bf16),
        P(spec.encoder ? shape.decSeq : shape.seq), N(shape.maxSeq), S(shape.seq) {
    if (spec.encoder)
      encoder.emplace(context, *spec.encoder, weights, shape.batch, shape.bf16);
  }

  OwningOpRef<ModuleOp> build() {
    OwningOpRef<ModuleOp> result = startModule();
    module = *result;
    for (Kind each : {Kind::prefill, Kind::decode, Kind::reference}) {
      kind = each;
      program();
    }
    return result;
  }

private:
  int64_t P, N, S; // tokens of a prompt, of a row at most, of the encoder
  std::optional<Encoder> encoder;
  ModuleOp module;
  Kind kind = Kind::prefill;
  Encoded encoded;
  Value position; // [1]: of decode's tokens; of the reference's last ones
  Value places;   // for sinusoids: of decode's tokens [B,1]; of the reference's [B,N], 0 in prompts

  // --- arguments

  struct Argument {
    RankedTensorType type;
    SmallVector<NamedAttribute> attributes;
  };
  Argument ids(StringRef name, int64_t tokens) {
    return {tensor({B, tokens}, b.getI32Type()), idsAttrs(name)};
  }
  Argument tokenMask(StringRef name, int64_t tokens) {
    return {tensor({B, tokens}, b.getI32Type()), maskAttrs(name)};
  }
  /// A small tensor that the loop sets, 0 where nobody does.
  Argument setting(StringRef name, RankedTensorType type, int64_t most = 0) {
    SmallVector<NamedAttribute> attributes{nameAttr(name)};
    if (most)
      attributes.push_back(b.getNamedAttr("moe.range", b.getDenseI64ArrayAttr({0, most})));
    else
      attributes.append({b.getNamedAttr("moe.optional", b.getUnitAttr()),
                         b.getNamedAttr("moe.fill", b.getF64FloatAttr(0.0))});
    return {type, std::move(attributes)};
  }
  bool countsByMask() const { return spec.positions == PositionKind::sinusoid; }
  bool countsById() const { return spec.positions == PositionKind::token_sinusoid; }

  void program() {
    bool decode = kind == Kind::decode;
    int64_t tokens = decode ? 1 : kind == Kind::prefill ? P : N;
    std::vector<Argument> arguments;
    std::string prefix = encoder ? "decoder_" : "";
    if (encoder && !decode)
      llvm::append_range(arguments,
                         ArrayRef<Argument>{ids("input_ids", S), tokenMask("attention_mask", S)});
    arguments.push_back(ids(prefix + "input_ids", tokens));
    if (!decode)
      arguments.push_back(tokenMask(prefix + "attention_mask", tokens));
    if (kind != Kind::prefill)
      arguments.push_back(setting("position", tensor({1}, b.getI32Type()), N - 1));
    if (kind != Kind::prefill && (countsById() || (decode && countsByMask())))
      arguments.push_back(setting("token_positions", tensor({B, tokens}, b.getI32Type()), N));
    arguments.push_back(setting("sampling", tensor({2}, f32)));
    arguments.push_back(setting("draw", tensor({4}, b.getI32Type())));

    OpBuilder::InsertionGuard guard(b);
    b.setInsertionPointToEnd(module.getBody());
    loc = named("model");
    SmallVector<Type> types;
    for (const Argument &argument : arguments)
      types.push_back(argument.type);
    auto next = tensor({B, 1}, b.getI32Type());
    const char *name = decode ? "decode" : kind == Kind::prefill ? "prefill" : "reference";
    auto func = func::FuncOp::create(b, loc, name, b.getFunctionType(types, {next}));
    for (auto [i, argument] : llvm::enumerate(arguments))
      func.setArgAttrs(i, argument.attributes);
    func.setResultAttrs(0, {nameAttr("next_ids")});
    if (kind == Kind::reference)
      func->setAttr("moe.reference", b.getUnitAttr());
    Block *body = func.addEntryBlock();
    b.setInsertionPointToEnd(body);
    auto argument = [&](StringRef wanted) -> Value {
      for (BlockArgument value : body->getArguments())
        if (func.getArgAttrOfType<StringAttr>(value.getArgNumber(), "moe.name") == wanted)
          return value;
      return {};
    };

    if (encoder && !decode) {
      encoded = encoder->build(body, argument("input_ids"), argument("attention_mask"));
      if (kind == Kind::prefill)
        write("cache.cross.mask", encoded.mask, S);
    }
    position = argument("position");
    places = argument("token_positions");
    mask = decode ? write("cache.mask", ones(), N) : argument(prefix + "attention_mask");
    if (kind == Kind::prefill)
      write("cache.mask", mask, N);
    layer = -1;
    Value h = startStack(argument(prefix + "input_ids"));
    for (layer = 0; layer < int64_t(spec.layers.size()); ++layer) {
      h = attentionBlock(h);
      if (encoder)
        h = crossAttentionBlock(h);
      h = feedForwardBlock(h);
    }
    layer = -1;
    loc = named("model");
    if (tokens > 1)
      h = moe::SlotOp::create(b, loc, tensor({B, 1, spec.hidden}, f32), h, position, IntegerAttr(),
                              Attribute());
    Value logits = head(finalNorm(h));
    loc = named("model");
    Value chosen = moe::SampleOp::create(b, loc, next, logits, argument("sampling"),
                                         argument("draw"), Attribute());
    // Every rank goes on from all of them.
    func::ReturnOp::create(
        b, loc,
        moe::WholeOp::create(b, loc, next, chosen, b.getDenseI64ArrayAttr({0, 1})).getResult());
  }

  // --- caches

  /// The cache of this name, which has `slots` rows of what `rows` has.
  Value cache(const Twine &name, Value rows, int64_t slots) {
    SmallVector<int64_t> shape(shapeOf(rows));
    shape[1] = slots;
    auto type = tensor(shape, cast<RankedTensorType>(rows.getType()).getElementType());
    std::string symbol = name.str();
    if (!module.lookupSymbol(symbol)) {
      OpBuilder::InsertionGuard guard(b);
      b.setInsertionPoint(*module.getOps<func::FuncOp>().begin());
      moe::StateOp::create(b, named(symbol), symbol, type, moe::SourceAttr(),
                           layer < 0 ? IntegerAttr() : b.getI64IntegerAttr(layer));
    }
    return moe::ParamOp::create(b, loc, type, symbol);
  }
  /// The cache with these rows in it, where the program's tokens stand.
  Value write(const Twine &name, Value rows, int64_t slots) {
    Value all = cache(name, rows, slots);
    return moe::WriteRowsOp::create(b, loc, all.getType(), rows, all,
                                    kind == Kind::decode ? position : Value());
  }
  /// The same in decode; in prefill the rows themselves, which are all there is so far.
  Value keep(const Twine &name, Value rows) {
    Value all = write(name, rows, N);
    return kind == Kind::decode ? all : rows;
  }
  std::string ofLayer(StringRef what) { return ("cache." + Twine(layer) + "." + what).str(); }
  Value ones() {
    return moe::FullOp::create(b, loc, tensor({B, 1}, b.getI32Type()), llvm::APFloat(1.0));
  }
  /// Positions of all slots of a cache.
  Value slotPositions(int64_t slots) {
    return moe::PositionsOp::create(b, loc, tensor({slots}, b.getI32Type()), Attribute());
  }

  KeyValues selfKeys(KeyValues fresh) override {
    if (kind == Kind::reference)
      return fresh;
    fresh.k = keep(ofLayer("k"), fresh.k);
    fresh.v = keep(ofLayer("v"), fresh.v);
    if (kind == Kind::decode)
      fresh.positions = slots;
    return fresh;
  }
  LatentKeys selfLatents(LatentKeys fresh) override {
    if (kind == Kind::reference)
      return fresh;
    fresh.latent = keep(ofLayer("latent"), fresh.latent);
    fresh.turned = keep(ofLayer("turned"), fresh.turned);
    if (kind == Kind::decode)
      fresh.positions = slots;
    return fresh;
  }
  KeyValues crossKeys() override {
    if (kind == Kind::decode) {
      auto read = [&](const Twine &name) -> Value {
        std::string symbol = name.str();
        auto state = module.lookupSymbol<moe::StateOp>(symbol);
        return moe::ParamOp::create(b, loc, state.getTensorType(), symbol);
      };
      return {read(ofLayer("cross.k")), read(ofLayer("cross.v")), slotPositions(S),
              read("cache.cross.mask")};
    }
    KeyValues fresh = projectEncoded(encoded.x, encoded.positions, encoded.mask);
    if (kind == Kind::prefill) {
      write(ofLayer("cross.k"), fresh.k, S);
      write(ofLayer("cross.v"), fresh.v, S);
    }
    return fresh;
  }

  // --- where tokens stand

  Value slots; // [N]: positions of the cache's slots

  Value ownPositions(int64_t tokens) override {
    if (kind != Kind::decode)
      return BlockBuilder::ownPositions(tokens);
    slots = slotPositions(N);
    return position;
  }
  int64_t span(int64_t) override { return N; }
  Value sinusoidPlaces(Value ids) override {
    if (!countsByMask()) {
      Value counted = BlockBuilder::sinusoidPlaces(ids);
      if (places)
        counted.getDefiningOp<moe::TokenPositionsOp>().getCountsMutable().assign(places);
      return counted;
    }
    if (kind == Kind::decode)
      return places;
    // A mask is a text whose only token is 1: its tokens are counted from 1.
    return moe::TokenPositionsOp::create(b, loc, as(ids, b.getI32Type()), mask, Value(), /*pad=*/0,
                                         Attribute());
  }
  int64_t sinusoidOffset() override { return spec.positionOffset - (countsByMask() ? 1 : 0); }
};

} // namespace

OwningOpRef<ModuleOp> moira::buildGenerate(MLIRContext &context, const ModelSpec &spec,
                                           const WeightTable &weights, const ProgramShape &shape) {
  return GenerateBuilder(context, spec, weights, shape).build();
}
