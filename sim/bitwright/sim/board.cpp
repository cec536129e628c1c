// A board in simulation: its serial line in bytes, its clock and its reset under control of another process.
// Commands come from standard input, answers go to standard output; numbers are 32 bits, little endian:
//   0 count bytes...  put these bytes on the line, after those that wait      (no answer)
//   1 cycles          run, at most so long, until a byte has come and no more follows at once
//                     answer: cycles run, count, bytes..., bytes that wait, whether the last Program has ended
//   2                 reset: registers, but no memory                         (no answer)
//   3                 restart: memories hold nothing                          (no answer)
// Usage: simulator DIVISOR

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <vector>

#include "Vtop.h"
#include "verilated.h"

namespace {

struct Board {
  std::unique_ptr<VerilatedContext> context;
  std::unique_ptr<Vtop> top;
  const int divisor;
  std::deque<uint8_t> sending;
  std::vector<uint8_t> received;
  int send_bit = 0, send_timer = 0;        // bit 1..10 of the byte that is being sent, 0 between bytes
  int receive_bit = 0, receive_timer = 0;  // the same for the one that comes
  uint8_t incoming = 0;

  explicit Board(int divisor) : divisor(divisor) { restart(); }

  void tick() {
    top->clk = 1;
    top->eval();
    top->clk = 0;
    top->eval();
  }
  void reset() {
    top->rst = 1;
    for (int i = 0; i < 4; i++) tick();
    top->rst = 0;
  }
  void restart() {
    top.reset();
    context = std::make_unique<VerilatedContext>();
    top = std::make_unique<Vtop>(context.get());
    sending.clear();
    send_bit = receive_bit = 0;
    top->clk = 0;
    top->rx = 1;
    reset();
  }
  void send() {
    if (send_timer > 0) {
      send_timer--;
      return;
    }
    if (send_bit == 0 && sending.empty()) return;
    if (send_bit == 0) top->rx = 0;
    if (send_bit > 0 && send_bit < 9) top->rx = sending.front() >> (send_bit - 1) & 1;
    if (send_bit == 9) top->rx = 1;
    if (send_bit == 10) {
      sending.pop_front();
      send_bit = 0;
      return;
    }
    send_timer = divisor - 1;
    send_bit++;
  }
  void receive() {
    if (receive_bit == 0) {
      if (top->tx) return;
      receive_bit = 1;
      receive_timer = divisor / 2;
    }
    if (receive_timer > 0) {
      receive_timer--;
      return;
    }
    receive_timer = divisor - 1;
    if (receive_bit > 1 && receive_bit < 10) incoming = static_cast<uint8_t>(incoming >> 1 | top->tx << 7);
    if (receive_bit == 10) {
      received.push_back(incoming);
      receive_bit = 0;
      return;
    }
    receive_bit++;
  }
  uint32_t run(uint32_t cycles) {
    int quiet = 0;
    for (uint32_t cycle = 0; cycle < cycles; cycle++) {
      if (!received.empty() && receive_bit == 0 && sending.empty() && ++quiet > 2 * divisor) return cycle;
      if (receive_bit) quiet = 0;
      send();
      tick();
      receive();
    }
    return cycles;
  }
};

bool get(uint32_t& number) { return std::fread(&number, 4, 1, stdin) == 1; }

void put(uint32_t number) { std::fwrite(&number, 4, 1, stdout); }

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  Board board(std::atoi(argv[1]));
  for (uint32_t command, number; get(command);) {
    if (command < 2 && !get(number)) return 2;
    if (command == 0) {
      for (uint32_t i = 0; i < number; i++) {
        const int byte = std::getchar();
        if (byte == EOF) return 2;
        board.sending.push_back(static_cast<uint8_t>(byte));
      }
    } else if (command == 1) {
      put(board.run(number));
      put(static_cast<uint32_t>(board.received.size()));
      std::fwrite(board.received.data(), 1, board.received.size(), stdout);
      put(static_cast<uint32_t>(board.sending.size()));
      put(board.top->done);
      if (std::fflush(stdout)) return 2;
      board.received.clear();
    } else if (command == 2) {
      board.reset();
    } else {
      board.restart();
    }
  }
  board.top->final();
  return 0;
}
