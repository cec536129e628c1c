// Drives the accelerator's host bus from a file of commands and writes what its probes show to another.
// commands.py describes both files.
// Usage: simulator COMMANDS RECORDS [WAVEFORM]
// Compiled for SAIF, run N writes two files: WAVEFORM.N counts changes, and bits that are 1 when it starts as a change;
// WAVEFORM.N.start counts these alone.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "Vtop.h"
#include "verilated.h"
#if VM_TRACE_VCD
#include "verilated_vcd_c.h"
using Waveform = VerilatedVcdC;
#elif VM_TRACE_SAIF
#include "verilated_saif_c.h"
using Waveform = VerilatedSaifC;
#endif

#define PORT(group, name) top->group##___05F##name  // Verilator's spelling of group__name
// __SYM__interrupt is its spelling of a port whose name it takes for a word of C++.

namespace {

struct Bench {
  VerilatedContext context;
  std::unique_ptr<Vtop> top{new Vtop{&context}};
  std::FILE* records = nullptr;
  std::vector<uint32_t> stream;  // what the weight stream offers in each run
  size_t streamed = 0;
#if VM_TRACE
  std::unique_ptr<Waveform> waveform;
  std::string path;  // of the waveform; empty: none
#endif
  int runs = 0;

  void edge(int level) {
    top->clk = level;
    top->eval();
#if VM_TRACE
    if (waveform) waveform->dump(context.time());
#endif
    context.timeInc(5);
  }
#if VM_TRACE
  void open(const std::string& name) {
    waveform.reset(new Waveform);
    top->trace(waveform.get(), 99);
    waveform->open(name.c_str());
  }
#endif
  // Inputs are set while the clock is low, outputs are read before it rises.
  void tick() {
    edge(1);
    edge(0);
  }
  void put(std::initializer_list<uint32_t> words) { std::fwrite(words.begin(), 4, words.size(), records); }

  void reset() {
    top->clk = 0;
    top->rst = 1;
    PORT(host, write) = PORT(host, read) = 0;
    PORT(weights, valid) = 0;
    for (int i = 0; i < 4; i++) tick();
    top->rst = 0;
  }
  void write(uint32_t address, uint32_t data) {
    PORT(host, address) = address;
    PORT(host, write_data) = data;
    PORT(host, write) = 1;
    tick();
    PORT(host, write) = 0;
  }
  void read(uint32_t address) {
    PORT(host, address) = address;
    PORT(host, read) = 1;
    tick();
    PORT(host, read) = 0;
    while (!PORT(host, read_valid)) tick();
    put({PORT(host, read_data)});
  }
  void write_record(int plane, uint32_t position, uint64_t data) {
    if (PORT(probe, write) >> plane & 1)
      put({3, PORT(probe, layer), PORT(probe, cycle), PORT(probe, write_raw), position, static_cast<uint32_t>(data),
           static_cast<uint32_t>(data >> 32)});
  }
  bool run(uint32_t limit, const std::set<uint32_t>& traced) {  // whether it ended
#if VM_TRACE_SAIF
    if (!path.empty()) {
      const std::string name = path + "." + std::to_string(runs);
      for (const std::string& each : {name + ".start", name}) {
        open(each);
        waveform->dump(context.time());
      }
      context.timeInc(1);  // each dump is at a time of its own
    }
#endif
    const bool ended = cycles(limit, traced);
#if VM_TRACE_SAIF
    waveform.reset();
#endif
    runs++;
    put({0, !ended});
    return ended;
  }
  bool cycles(uint32_t limit, const std::set<uint32_t>& traced) {  // whether the interrupt came
    streamed = 0;
    for (uint32_t cycle = 0; cycle < limit; cycle++) {
      PORT(weights, valid) = streamed < stream.size();
      PORT(weights, payload) = streamed < stream.size() ? stream[streamed] : 0;
      streamed += streamed < stream.size() && PORT(weights, ready);
      tick();
      const uint32_t layer = PORT(probe, layer);
      if (PORT(probe, layer_start)) put({1, layer, PORT(probe, cycle)});
      if (PORT(probe, write) && traced.count(layer)) {
        write_record(0, PORT(probe, write_position___05F0), PORT(probe, write_data___05F0));
        write_record(1, PORT(probe, write_position___05F1), PORT(probe, write_data___05F1));
        write_record(2, PORT(probe, write_position___05F2), PORT(probe, write_data___05F2));
        write_record(3, PORT(probe, write_position___05F3), PORT(probe, write_data___05F3));
      }
      if (PORT(probe, layer_done))
        put({2, layer, PORT(probe, cycle), PORT(probe, busy), PORT(probe, stalls), PORT(probe, computed),
             PORT(probe, gated), PORT(probe, skipped), PORT(probe, compares), PORT(probe, writes),
             PORT(probe, loads)});
      if (top->__SYM__interrupt) return true;
    }
    return false;
  }
};

std::vector<uint32_t> load(const char* path) {
  std::vector<uint32_t> words;
  std::FILE* file = std::fopen(path, "rb");
  if (!file) std::exit(2);
  uint32_t block[4096];
  for (size_t n; (n = std::fread(block, 4, 4096, file)) > 0;) words.insert(words.end(), block, block + n);
  std::fclose(file);
  return words;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  Bench bench;
  bench.records = std::fopen(argv[2], "wb");
  if (!bench.records) return 2;
#if VM_TRACE
  if (argc > 3) {
    bench.context.traceEverOn(true);
    bench.path = argv[3];
#if VM_TRACE_VCD
    bench.open(bench.path);
#endif
  }
#endif
  const std::vector<uint32_t> commands = load(argv[1]);
  bench.reset();
  for (size_t i = 0; i < commands.size();) {
    switch (commands[i]) {
      case 0:
        bench.write(commands[i + 1], commands[i + 2]);
        i += 3;
        break;
      case 1:
        bench.read(commands[i + 1]);
        i += 2;
        break;
      case 3:
        bench.stream.assign(commands.begin() + i + 2, commands.begin() + i + 2 + commands[i + 1]);
        i += 2 + commands[i + 1];
        break;
      default: {
        const size_t count = commands[i + 2];
        const bool ended = bench.run(commands[i + 1], {commands.begin() + i + 3, commands.begin() + i + 3 + count});
        i = ended ? i + 3 + count : commands.size();
      }
    }
  }
#if VM_TRACE
  bench.waveform.reset();
#endif
  bench.top->final();
  const bool failed = std::ferror(bench.records);
  return std::fclose(bench.records) || failed ? 2 : 0;
}
