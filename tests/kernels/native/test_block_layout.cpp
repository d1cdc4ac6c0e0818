#include <set>
#include <stdexcept>

#include "program.hpp"

namespace {

using mindpet::Block;
using mindpet::Layout;

struct Memory {
  long tape, forward, backward;
};

Memory memory_of(const Program& program) {
  const Block block = program.block();
  const Layout layout(block, program.shapes);
  return {layout.tape, run_forward(block, layout, nullptr, nullptr, nullptr, nullptr, nullptr),
          run_backward(block, layout, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr)};
}

// Only what gradients ask for is kept, and once; everything else takes memory that is free again.
void test_memory() {
  Program keys(2, 8, 16);
  const int x = keys.dense(0, 16, false, false, false);
  keys.attention(x, x, x, NONE, 4, 4, false);
  require(memory_of(keys).tape == 2 * 8 * (16 + 2 * 4), "a block keeps rows once");
  Program chain(2, 8, 16);
  for (int i = 0, y = 0; i < 5; ++i) y = chain.dense(y, 16, false, false, false);
  const Memory two = memory_of(chain);
  require(two.tape == 0 && two.forward == 2 * 256 && two.backward == 2 * 256, "a chain of operations takes two places");
  for (const auto& [few, many] : {std::pair{bert(2, 2, 8, 4, 4, true), bert(5, 2, 8, 4, 4, true)},
                                  {llama(2, 2, 8, 4, 2, 4), llama(5, 2, 8, 4, 2, 4)}}) {
    const Memory less = memory_of(few), more = memory_of(many);
    require(less.forward == more.forward && less.backward == more.backward, "more layers take no more room");
  }
}

// A block in which every input has a name by which a wrong shape is to be reported.
struct Everything {
  Program program{3, 7, 6};
  int mask = program.input({3, 1, 7, 7}), cosine = program.input({3, 7, 1}), sine = program.input({3, 7, 1});
  int weight = program.input({6, 6}), bias = program.input({6});
  int lora_a = program.input({2, 6}), lora_b = program.input({6, 2}), scale = program.input({});
  int gamma = program.input({6}), beta = program.input({6}), narrow = program.input({3, 6});

  Everything() {
    const int x = program.dense_by(0, weight, bias, false, false);
    const int query = program.same(Code::rotary, x, cosine, sine, 2, 0);
    const int seen = program.attention(query, x, x, mask, 2, 2, false);
    const int y = program.same(Code::lora, seen, weight, bias, lora_a, lora_b, scale, 0);
    const int z = program.same(Code::layer_norm, y, x, gamma, beta, NORM_EPSILON, 0);
    program.same(Code::rms_norm, z, NONE, gamma, NORM_EPSILON, 0);
  }
};

// Whether a layout is refused, by a message that names what does not fit.
bool refuses(const Program& program, const std::string& name) {
  try {
    Layout(program.block(), program.shapes);
  } catch (const std::invalid_argument& error) {
    return std::string(error.what()).find(name) != std::string::npos;
  }
  return false;
}

bool refuses_shape(int Everything::* place, const Shape& shape, const std::string& name) {
  Everything all;
  all.program.shapes[static_cast<std::size_t>(all.*place)] = shape;
  return refuses(all.program, name);
}

bool refuses_rows(const Shape& shape) {
  Everything all;
  all.program.shapes[0] = shape;
  return refuses(all.program, "");
}

// Whether it refuses what is done with the rows (3, 7, 6), and with fewer columns of them.
bool refuses_step(const std::string& name, const std::function<void(Everything&, int)>& act) {
  Everything all;
  all.program.steps.clear();
  all.program.results = 0;
  act(all, all.program.dense_by(0, all.narrow, NONE, false, false));
  return refuses(all.program, name);
}

void test_refusals() {
  require(!refuses(Everything().program, ""), "a block takes what fits");
  for (const Shape& shape : {Shape{21, 6}, Shape{6}, Shape{3, 7, 2, 3}, Shape{3, 7, 5}, Shape{3, 6, 6}, Shape{2, 7, 6},
                             Shape{-3, -7, 6}}) {
    require(refuses_rows(shape), "a block refuses rows " + mindpet::text(shape));
  }
  struct {
    int Everything::* place;
    const char* name;
    Shapes wrong;
  } const CASES[] = {
      {&Everything::weight, "weight", {{6, 5}, {36}, {6, 6, 1}, {}}},
      {&Everything::bias, "bias", {{5}, {6, 1}, {}}},
      {&Everything::lora_a, "lora_a", {{2, 5}, {12}}},
      {&Everything::lora_b, "lora_b", {{6, 3}, {2, 6}, {12}}},
      {&Everything::scale, "scale", {{0}, {1}, {2}}},
      {&Everything::gamma, "gamma", {{5}, {1}, {1, 6}}},
      {&Everything::beta, "beta", {{7}, {}, {6, 1}}},
      {&Everything::mask, "mask", {{3, 7, 7}, {2, 1, 7, 7}, {3, 2, 7, 7}, {3, 1, 6, 7}, {3, 1, 7, 1}}},
      {&Everything::cosine, "cosine", {{3, 7}, {2, 7, 1}, {3, 6, 1}, {3, 7, 2}}},
      {&Everything::sine, "sine", {{1, 7, 1}, {3, 7, 2}, {3, 7}}},
  };
  for (const auto& [place, name, wrong] : CASES) {
    for (const Shape& shape : wrong) {
      require(refuses_shape(place, shape, name), "a block refuses " + (name + (" " + mindpet::text(shape))));
    }
  }
  for (std::size_t place = 0; place < Everything().program.shapes.size(); ++place) {
    for (std::size_t axis = 0; axis < Everything().program.shapes[place].size(); ++axis) {
      Program unknown = Everything().program;
      unknown.shapes[place][axis] = -1;
      require(refuses(unknown, "known"), "a block refuses an unknown shape of input " + std::to_string(place));
    }
  }
  const std::string fewer = "a block refuses fewer columns of ";
  require(refuses_step("key", [](auto& all, int x) { all.program.attention(0, x, 0, NONE, 2, 2, false); }),
          fewer + "keys");
  require(refuses_step("value", [](auto& all, int x) { all.program.attention(0, 0, x, NONE, 2, 2, false); }),
          fewer + "values");
  require(refuses_step("second", [](auto& all, int x) { all.program.same(Code::add, 0, x); }), fewer + "a summand");
  require(refuses_step("second", [](auto& all, int x) { all.program.same(Code::silu_gate, 0, x); }),
          fewer + "what is gated");
  require(refuses_step("residual", [](auto& all, int x) { all.program.rms_norm(0, x, false); }), fewer + "a residual");
  require(refuses_step("residual", [](auto& all, int x) { all.program.layer_norm(0, x, false); }),
          fewer + "layer_norm's residual");
  require(refuses_step("heads", [](auto& all, int x) { all.program.attention(x, x, x, NONE, 2, 2, false); }),
          "a block refuses heads that do not divide the columns");
  require(refuses_step("heads", [](auto& all, int x) { all.program.attention(0, x, x, NONE, 6, 4, false); }),
          "a block refuses key heads that do not divide the heads");
  require(refuses_step("heads", [](auto& all, int x) { all.program.rotary(x, all.cosine, all.sine, 2, false); }),
          "a block refuses to turn heads that do not divide the columns");
}

// Blocks that differ in a few small numbers.
void test_fingerprints() {
  std::set<float> found;
  for (int heads = 1; heads <= 10; ++heads)
    for (int key_heads = 1; key_heads <= 10; ++key_heads)
      for (bool causal : {false, true}) {
        Program program(1, 1, 4);
        program.attention(0, 0, 0, NONE, heads, key_heads, causal);
        found.insert(program.block().fingerprint);
      }
  require(found.size() == 200, "different blocks have different fingerprints");
}

// A whole block, and one that lacks its last number or has a result that nobody reads.
void test_whole_blocks() {
  const auto is_refused = [](const Numbers& written) {
    try {
      mindpet::Block(written.data(), static_cast<long>(written.size()));
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  Program program(1, 1, 4);
  program.same(Code::gelu, program.same(Code::gelu, 0));
  Numbers written = program.written();
  require(!is_refused(written), "a block is taken whole");
  written.pop_back();
  require(is_refused(written), "a block is not taken without its end");
  program.same(Code::gelu, 0);
  require(is_refused(program.written()), "a block is not taken with a result that nobody reads");
}

bool is_undefined(int number) {
  try {
    mindpet::block(number);
  } catch (const std::invalid_argument&) {
    return true;
  }
  return false;
}

void test_definitions() {
  const auto define = [](int number, const Program& program) {
    const Numbers written = program.written();
    return mindpet::define_block(number, written.data(), static_cast<long>(written.size()));
  };
  Program gelu(1, 1, 4), add(1, 1, 4);
  gelu.same(Code::gelu, 0);
  add.same(Code::add, 0, 0);
  require(is_undefined(2), "a block is not there before it is defined");
  const float fingerprint = define(2, gelu);
  require(fingerprint >= 0 && define(2, gelu) == fingerprint, "a block is defined twice as the same");
  require(define(2, add) == -1, "a number stands for one block");
  require(define(3, add) >= 0 && define(3, add) != fingerprint, "another block has another fingerprint");
  require(define(-1, add) == -1 && define(mindpet::BLOCKS, add) == -1, "numbers have a range");
  require(define(0, add) >= 0 && define(mindpet::BLOCKS - 1, add) >= 0, "the first and the last number are in range");
  require(!is_undefined(2) && mindpet::block(2).fingerprint == fingerprint, "a block is found by its number");
  require(mindpet::block(2).instructions[0].code == Code::gelu, "a block stays what it is");
  require(is_undefined(4), "other numbers stay undefined");
}

}  // namespace

void test_block_layout() {
  test_memory();
  test_refusals();
  test_fingerprints();
  test_whole_blocks();
  test_definitions();
}
