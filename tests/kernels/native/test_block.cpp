#include <cmath>
#include <cstring>

#include "program.hpp"

namespace {

using mindpet::Block;
using mindpet::Layout;

// Memory of which nothing is to be read before it is written, with more behind it that nobody is to touch.
class Guarded {
 public:
  explicit Guarded(long count) : numbers_(blank(static_cast<std::size_t>(count) + GUARD)) {}

  float* data() { return numbers_.data(); }
  const Numbers& all() const { return numbers_; }
  Numbers content() const { return Numbers(numbers_.begin(), numbers_.end() - GUARD); }

  bool is_intact() const {
    const Numbers fresh = blank(GUARD);
    return std::memcmp(numbers_.data() + numbers_.size() - GUARD, fresh.data(), GUARD * sizeof(float)) == 0;
  }

 private:
  static constexpr long GUARD = 64;
  Numbers numbers_;
};

bool same_bits(const Numbers& x, const Numbers& y) {
  return x.size() == y.size() && (x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0);
}

std::size_t area(const Shape& shape) {
  std::size_t result = 1;
  for (std::int64_t axis : shape) result *= static_cast<std::size_t>(axis);
  return result;
}

// Matrices are small enough for products to keep the size of their rows.
std::vector<Numbers> random_inputs(const Program& program) {
  std::vector<Numbers> values;
  for (const Shape& shape : program.shapes) {
    values.push_back(random_numbers(area(shape), static_cast<unsigned>(values.size())));
    if (shape.size() != 2) continue;
    for (float& value : values.back()) value /= std::sqrt(static_cast<float>(shape[1]));
  }
  return values;
}

Numbers random_gradient(const Program& program) {
  return random_numbers(area({program.batch(), program.length(), program.columns.at(program.output())}), 100);
}

// The output and the gradients, in double precision and from central differences.
std::vector<Exact> exactly(const Program& program) {
  std::vector<Exact> inputs;
  const std::vector<Numbers> values = random_inputs(program);
  for (const Numbers& value : values) inputs.push_back(exact(value));
  std::vector<Exact> expected = {computed(program, inputs)};
  for (int place : program.trained) {
    const Numbers& value = values[static_cast<std::size_t>(place)];
    Exact& input = inputs[static_cast<std::size_t>(place)];
    const auto moving = [&](const Exact& moved) {
      input = moved;
      return computed(program, inputs);
    };
    expected.push_back(slopes(moving, value, random_gradient(program)));
    input = exact(value);
  }
  return expected;
}

// The same from the kernels one by one.
std::vector<Exact> step_by_step(const Machine& machine, const Program& program) {
  std::vector<Exact> expected;
  for (const Numbers& result :
       computed_step_by_step(*machine.kernels, program, random_inputs(program), random_gradient(program))) {
    expected.push_back(exact(result));
  }
  return expected;
}

// The same from the block.
std::vector<Numbers> run(const std::string& name, const Kernels& with, const Program& program) {
  const Block block = program.block();
  const Layout layout(block, program.shapes);
  const std::vector<Numbers> values = random_inputs(program);
  std::vector<const float*> inputs;
  for (const Numbers& value : values) inputs.push_back(value.data());

  Guarded output(layout.size(block.output())), tape(layout.tape);
  Guarded room(run_forward(block, layout, nullptr, nullptr, nullptr, nullptr, nullptr));
  run_forward(block, layout, &with, inputs.data(), output.data(), tape.data(), room.data());

  std::vector<Guarded> found;
  for (int place : program.trained) found.emplace_back(layout.size(place));
  std::vector<float*> gradients;
  for (Guarded& gradient : found) gradients.push_back(gradient.data());
  const Numbers doutput = random_gradient(program), tape_before = tape.all();
  Guarded room_back(run_backward(block, layout, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr));
  run_backward(block, layout, &with, inputs.data(), doutput.data(), tape.data(), gradients.data(), room_back.data());
  require(same_bits(tape.all(), tape_before) && same_bits(doutput, random_gradient(program)),
          name + " changes nothing that its gradients are computed from");

  found.insert(found.begin(), output);
  std::vector<Numbers> results;
  for (const Guarded& result : found) results.push_back(result.content());
  for (const Guarded* memory : {&tape, &room, &room_back}) found.push_back(*memory);
  for (const Guarded& memory : found) require(memory.is_intact(), name + " writes where it may");
  return results;
}

void test_program(const std::string& name, const Machine& machine, const Program& program,
                  const std::vector<Exact>& expected) {
  const std::string full = machine.name + " block of " + name + " " + mindpet::text(program.shapes[0]);
  check(full, expected, FLOAT_ERROR, [&] { return run(full, *machine.kernels, program); });
}

// An operation on rows of some heads. It returns its result's place.
struct Operation {
  std::string name;
  std::function<int(Program&, int)> on;
};

constexpr int HEADS = 3;
constexpr long SIZE = 5;

// Other rows than those that an operation is tested with.
int others(Program& p) { return p.dense(0, HEADS * SIZE, false, false, false); }

int masked_attention(Program& p, int x, bool for_each_example, bool for_each_query) {
  const int mask = p.input({for_each_example ? p.batch() : 1, 1, for_each_query ? p.length() : 1, p.length()});
  return p.attention(others(p), others(p), x, mask, HEADS, HEADS, false);
}

int turned(Program& p, int x, long examples, bool interleaved) {
  const int cosine = p.input({examples, p.length(), SIZE / 2}), sine = p.input({examples, p.length(), SIZE / 2});
  return p.rotary(x, cosine, sine, HEADS, interleaved);
}

std::vector<Operation> operations() {
  return {
      {"dense", [](Program& p, int x) { return p.dense(x, 7, true, false, false); }},
      {"dense without bias, trained", [](Program& p, int x) { return p.dense(x, 7, false, true, false); }},
      {"dense, trained", [](Program& p, int x) { return p.dense(x, 4, true, true, true); }},
      {"dense, its bias trained", [](Program& p, int x) { return p.dense(x, 4, true, false, true); }},
      {"lora", [](Program& p, int x) { return p.lora(x, 7, 2, true, false); }},
      {"lora without bias", [](Program& p, int x) { return p.lora(x, 4, 3, false, false); }},
      {"lora, the bias trained", [](Program& p, int x) { return p.lora(x, 7, 1, true, true); }},
      {"attention of rows to themselves",
       [](Program& p, int x) { return p.attention(x, x, x, NONE, HEADS, HEADS, false); }},
      {"attention to rows",
       [](Program& p, int x) { return p.attention(others(p), x, others(p), NONE, HEADS, HEADS, true); }},
      {"causal attention of grouped heads",
       [](Program& p, int x) {
         const int key = p.dense(0, SIZE, false, true, false), value = p.dense(0, SIZE, true, false, true);
         return p.attention(x, key, value, NONE, HEADS, 1, true);
       }},
      {"masked attention", [](Program& p, int x) { return masked_attention(p, x, false, false); }},
      {"attention masked by example", [](Program& p, int x) { return masked_attention(p, x, true, false); }},
      {"attention masked by query", [](Program& p, int x) { return masked_attention(p, x, false, true); }},
      {"attention masked by both", [](Program& p, int x) { return masked_attention(p, x, true, true); }},
      {"layer_norm", [](Program& p, int x) { return p.layer_norm(x, NONE, false); }},
      {"layer_norm, trained", [](Program& p, int x) { return p.layer_norm(x, NONE, true); }},
      {"layer_norm with residual",
       [](Program& p, int x) { return p.layer_norm(p.same(Code::gelu, x), x, true); }},
      {"layer_norm of doubled rows", [](Program& p, int x) { return p.layer_norm(x, x, false); }},
      {"rms_norm", [](Program& p, int x) { return p.rms_norm(x, NONE, false); }},
      {"rms_norm, trained", [](Program& p, int x) { return p.rms_norm(x, NONE, true); }},
      {"rms_norm with residual", [](Program& p, int x) { return p.rms_norm(p.same(Code::gelu, x), x, false); }},
      {"rms_norm whose sum is read",
       [](Program& p, int x) {
         const int y = p.rms_norm(p.same(Code::gelu_tanh, x), x, true), sum = y + 1;
         return p.same(Code::add, p.same(Code::gelu, y), sum);
       }},
      {"rms_norm of doubled rows", [](Program& p, int x) { return p.rms_norm(x, x, true); }},
      {"add", [](Program& p, int x) { return p.same(Code::add, p.same(Code::gelu, x), x); }},
      {"add of rows to themselves", [](Program& p, int x) { return p.same(Code::add, x, x); }},
      {"gelu", [](Program& p, int x) { return p.same(Code::gelu, x); }},
      {"gelu_tanh", [](Program& p, int x) { return p.same(Code::gelu_tanh, x); }},
      {"silu_gate", [](Program& p, int x) { return p.same(Code::silu_gate, others(p), x); }},
      {"silu_gate by rows", [](Program& p, int x) { return p.same(Code::silu_gate, x, others(p)); }},
      {"silu_gate of rows by themselves", [](Program& p, int x) { return p.same(Code::silu_gate, x, x); }},
      {"rotary", [](Program& p, int x) { return turned(p, x, 1, false); }},
      {"interleaved rotary", [](Program& p, int x) { return turned(p, x, p.batch(), true); }},
  };
}

// Alone; between others, where a gradient may take the place of another one; and where others read the rows as well, so
// that there is a gradient already.
void test_operation(const Machine& machine, const Operation& operation, long batch, long length) {
  Program alone(batch, length, HEADS * SIZE);
  operation.on(alone, 0);
  test_program(operation.name, machine, alone, exactly(alone));

  Program between(batch, length, 5);
  const int first = between.same(Code::gelu_tanh, 0);
  const int x = between.same(Code::gelu, between.dense(first, HEADS * SIZE, true, false, true));
  between.dense(between.same(Code::gelu_tanh, operation.on(between, x)), 2, false, false, false);
  test_program(operation.name + " between others", machine, between, exactly(between));

  Program shared(batch, length, 5);
  const int rows = shared.lora(0, HEADS * SIZE, 2, false, false);
  const int result = shared.dense(operation.on(shared, rows), HEADS * SIZE, false, false, false);
  shared.layer_norm(result, shared.same(Code::add, rows, rows), false);
  test_program(operation.name + " beside others", machine, shared, exactly(shared));
}

// Parameters that several operations share.
void test_shared_parameters(const Machine& machine, long batch, long length) {
  Program dense(batch, length, 5);
  const int weight = dense.parameter({5, 5}, true), bias = dense.parameter({5}, true);
  int x = 0;
  for (int i = 0; i < 3; ++i) x = dense.same(Code::gelu, dense.dense_by(x, weight, bias, true, true));
  test_program("one dense three times", machine, dense, exactly(dense));

  Program norms(batch, length, 5);
  const int gamma = norms.parameter({5}, true), beta = norms.parameter({5}, true);
  x = 0;
  for (int i = 0; i < 2; ++i) {
    const int y = norms.same(Code::rms_norm, norms.same(Code::gelu, x), x, gamma, NORM_EPSILON, 1);
    x = norms.same(Code::layer_norm, y, y + 1, gamma, beta, NORM_EPSILON, 1);
  }
  test_program("norms of one scale", machine, norms, exactly(norms));

  Program lora(batch, length, 5);
  const int frozen = lora.parameter({5, 5}, false), a = lora.parameter({2, 5}, true), b = lora.parameter({5, 2}, true);
  const int shift = lora.parameter({5}, true), scale = lora.input({});
  x = 0;
  for (int i = 0; i < 2; ++i) x = lora.same(Code::gelu, lora.same(Code::lora, x, frozen, shift, a, b, scale, 1));
  test_program("one lora twice", machine, lora, exactly(lora));
}

}  // namespace

void test_block(const Machine& machine) {
  const std::pair<long, long> SIZES[] = {{1, 1}, {3, 1}, {1, 7}, {3, 7}, {0, 7}};
  for (const auto& [batch, length] : SIZES) {
    for (const Operation& operation : operations()) test_operation(machine, operation, batch, length);
    test_shared_parameters(machine, batch, length);
    for (bool trains_norms : {false, true}) {
      const Program layer = bert(1, batch, length, 2, 3, trains_norms);
      test_program("BERT's layer", machine, layer, exactly(layer));
    }
    const Program layer = llama(1, batch, length, 4, 2, 2);
    test_program("Llama's layer", machine, layer, exactly(layer));
  }
  for (long length : {1, 37, 130}) {
    const Program encoder = bert(2, 3, length, 3, 17, true), decoder = llama(2, 3, length, 6, 2, 18);
    test_program("BERT's layers", machine, encoder, step_by_step(machine, encoder));
    test_program("Llama's layers", machine, decoder, step_by_step(machine, decoder));
  }
}
