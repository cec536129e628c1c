// Block RAM of the ECP5: Yosys ships only the ports of this cell. This model is inferred from those ports and from how
// Yosys maps memories to them, for what synthesized memories need: rising edges, no output register, no reset, no
// write-through. Anything else ends the simulation. What a port reads while the other one writes the same word is
// undefined; here it is the old word.

module DP16KD (
  input DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4, DIA3, DIA2, DIA1, DIA0,
  input ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0,
  input CEA, OCEA, CLKA, WEA, RSTA, CSA2, CSA1, CSA0,
  output DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2, DOA1, DOA0,
  input DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4, DIB3, DIB2, DIB1, DIB0,
  input ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0,
  input CEB, OCEB, CLKB, WEB, RSTB, CSB2, CSB1, CSB0,
  output DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2, DOB1, DOB0
);
  parameter DATA_WIDTH_A = 18, DATA_WIDTH_B = 18;
  parameter REGMODE_A = "NOREG", REGMODE_B = "NOREG";
  parameter WRITEMODE_A = "NORMAL", WRITEMODE_B = "NORMAL";
  parameter RESETMODE = "SYNC", ASYNC_RESET_RELEASE = "SYNC";
  parameter CSDECODE_A = "0b000", CSDECODE_B = "0b000";
  parameter CLKAMUX = "CLKA", CLKBMUX = "CLKB";
  parameter GSR = "ENABLED";
  // Sixteen words of 18 bits each, every word in 20 bits.
  parameter [319:0] INITVAL_00 = 0, INITVAL_01 = 0, INITVAL_02 = 0, INITVAL_03 = 0, INITVAL_04 = 0, INITVAL_05 = 0,
    INITVAL_06 = 0, INITVAL_07 = 0, INITVAL_08 = 0, INITVAL_09 = 0, INITVAL_0A = 0, INITVAL_0B = 0, INITVAL_0C = 0,
    INITVAL_0D = 0, INITVAL_0E = 0, INITVAL_0F = 0, INITVAL_10 = 0, INITVAL_11 = 0, INITVAL_12 = 0, INITVAL_13 = 0,
    INITVAL_14 = 0, INITVAL_15 = 0, INITVAL_16 = 0, INITVAL_17 = 0, INITVAL_18 = 0, INITVAL_19 = 0, INITVAL_1A = 0,
    INITVAL_1B = 0, INITVAL_1C = 0, INITVAL_1D = 0, INITVAL_1E = 0, INITVAL_1F = 0, INITVAL_20 = 0, INITVAL_21 = 0,
    INITVAL_22 = 0, INITVAL_23 = 0, INITVAL_24 = 0, INITVAL_25 = 0, INITVAL_26 = 0, INITVAL_27 = 0, INITVAL_28 = 0,
    INITVAL_29 = 0, INITVAL_2A = 0, INITVAL_2B = 0, INITVAL_2C = 0, INITVAL_2D = 0, INITVAL_2E = 0, INITVAL_2F = 0,
    INITVAL_30 = 0, INITVAL_31 = 0, INITVAL_32 = 0, INITVAL_33 = 0, INITVAL_34 = 0, INITVAL_35 = 0, INITVAL_36 = 0,
    INITVAL_37 = 0, INITVAL_38 = 0, INITVAL_39 = 0, INITVAL_3A = 0, INITVAL_3B = 0, INITVAL_3C = 0, INITVAL_3D = 0,
    INITVAL_3E = 0, INITVAL_3F = 0;
  localparam [64*320-1:0] INIT = {
    INITVAL_3F, INITVAL_3E, INITVAL_3D, INITVAL_3C, INITVAL_3B, INITVAL_3A, INITVAL_39, INITVAL_38,
    INITVAL_37, INITVAL_36, INITVAL_35, INITVAL_34, INITVAL_33, INITVAL_32, INITVAL_31, INITVAL_30,
    INITVAL_2F, INITVAL_2E, INITVAL_2D, INITVAL_2C, INITVAL_2B, INITVAL_2A, INITVAL_29, INITVAL_28,
    INITVAL_27, INITVAL_26, INITVAL_25, INITVAL_24, INITVAL_23, INITVAL_22, INITVAL_21, INITVAL_20,
    INITVAL_1F, INITVAL_1E, INITVAL_1D, INITVAL_1C, INITVAL_1B, INITVAL_1A, INITVAL_19, INITVAL_18,
    INITVAL_17, INITVAL_16, INITVAL_15, INITVAL_14, INITVAL_13, INITVAL_12, INITVAL_11, INITVAL_10,
    INITVAL_0F, INITVAL_0E, INITVAL_0D, INITVAL_0C, INITVAL_0B, INITVAL_0A, INITVAL_09, INITVAL_08,
    INITVAL_07, INITVAL_06, INITVAL_05, INITVAL_04, INITVAL_03, INITVAL_02, INITVAL_01, INITVAL_00};

  reg [8:0] memory[0:2047];
  integer byte_index;
  initial begin
    for (byte_index = 0; byte_index < 2048; byte_index = byte_index + 1)
      memory[byte_index] = INIT[20 * (byte_index / 2) + 9 * (byte_index % 2) +: 9];
    if (WRITEMODE_A == "WRITETHROUGH" || WRITEMODE_B == "WRITETHROUGH" || REGMODE_A != "NOREG" || REGMODE_B != "NOREG" ||
        CSDECODE_A != "0b000" || CSDECODE_B != "0b000" || CLKAMUX != "CLKA" || CLKBMUX != "CLKB") begin
      $display("DP16KD: this mode has no model");
      $finish;
    end
  end

  wire [13:0] address_a = {ADA13, ADA12, ADA11, ADA10, ADA9, ADA8, ADA7, ADA6, ADA5, ADA4, ADA3, ADA2, ADA1, ADA0};
  wire [13:0] address_b = {ADB13, ADB12, ADB11, ADB10, ADB9, ADB8, ADB7, ADB6, ADB5, ADB4, ADB3, ADB2, ADB1, ADB0};
  wire [17:0] data_a = {DIA17, DIA16, DIA15, DIA14, DIA13, DIA12, DIA11, DIA10, DIA9, DIA8, DIA7, DIA6, DIA5, DIA4,
                        DIA3, DIA2, DIA1, DIA0};
  wire [17:0] data_b = {DIB17, DIB16, DIB15, DIB14, DIB13, DIB12, DIB11, DIB10, DIB9, DIB8, DIB7, DIB6, DIB5, DIB4,
                        DIB3, DIB2, DIB1, DIB0};
  wire selected_a = CEA & ~CSA2 & ~CSA1 & ~CSA0;
  wire selected_b = CEB & ~CSB2 & ~CSB1 & ~CSB0;

  // Word that a port reads: ports of 36 and 18 bits ignore four and three bits of the address, their lowest bytes first;
  // ports narrower than a byte see eight of its bits.
  function [35:0] word(input integer width, input [13:0] address);
    case (width)
      36: word = {memory[{address[13:5], 2'd3}], memory[{address[13:5], 2'd2}],
                  memory[{address[13:5], 2'd1}], memory[{address[13:5], 2'd0}]};
      18: word = {memory[{address[13:4], 1'd1}], memory[{address[13:4], 1'd0}]};
      9: word = memory[address[13:3]];
      4: word = (memory[address[13:3]] >> {address[2], 2'd0}) & 15;
      2: word = (memory[address[13:3]] >> {address[2:1], 1'd0}) & 3;
      default: word = (memory[address[13:3]] >> address[2:0]) & 1;
    endcase
  endfunction

  // Byte with narrow data in it.
  function [8:0] merged(input integer width, input [13:0] address, input [8:0] data);
    case (width)
      9: merged = data;
      4: merged = (memory[address[13:3]] & ~(9'd15 << {address[2], 2'd0})) | ((data & 15) << {address[2], 2'd0});
      2: merged = (memory[address[13:3]] & ~(9'd3 << {address[2:1], 1'd0})) | ((data & 3) << {address[2:1], 1'd0});
      default: merged = (memory[address[13:3]] & ~(9'd1 << address[2:0])) | ((data & 1) << address[2:0]);
    endcase
  endfunction

  // A port of 36 bits takes the data pins of both, and the lower half is at those of port A. The lowest bits of the
  // address of wide ports enable bytes.
  reg [35:0] read_a = 0, read_b = 0;
  always @(posedge CLKA) if (selected_a) begin
    if (!WEA || WRITEMODE_A == "READBEFOREWRITE") read_a <= word(DATA_WIDTH_A, address_a);
    if (WEA && DATA_WIDTH_A == 36) begin
      if (ADA0) memory[{address_a[13:5], 2'd0}] <= data_a[8:0];
      if (ADA1) memory[{address_a[13:5], 2'd1}] <= data_a[17:9];
      if (ADA2) memory[{address_a[13:5], 2'd2}] <= data_b[8:0];
      if (ADA3) memory[{address_a[13:5], 2'd3}] <= data_b[17:9];
    end
    if (WEA && DATA_WIDTH_A == 18) begin
      if (ADA0) memory[{address_a[13:4], 1'd0}] <= data_a[8:0];
      if (ADA1) memory[{address_a[13:4], 1'd1}] <= data_a[17:9];
    end
    if (WEA && DATA_WIDTH_A < 18) memory[address_a[13:3]] <= merged(DATA_WIDTH_A, address_a, data_a[8:0]);
  end
  always @(posedge CLKB) if (selected_b) begin
    if (!WEB || WRITEMODE_B == "READBEFOREWRITE") read_b <= word(DATA_WIDTH_B, address_b);
    if (WEB && DATA_WIDTH_B == 18) begin
      if (ADB0) memory[{address_b[13:4], 1'd0}] <= data_b[8:0];
      if (ADB1) memory[{address_b[13:4], 1'd1}] <= data_b[17:9];
    end
    if (WEB && DATA_WIDTH_B < 18) memory[address_b[13:3]] <= merged(DATA_WIDTH_B, address_b, data_b[8:0]);
  end
  always @(posedge CLKA, posedge CLKB)
    if (RSTA || RSTB || (selected_b && WEB && DATA_WIDTH_B == 36)) begin
      $display("DP16KD: this reset or write has no model");
      $finish;
    end

  wire [17:0] out_a = DATA_WIDTH_B == 36 ? read_b[17:0] : read_a[17:0];
  wire [17:0] out_b = DATA_WIDTH_B == 36 ? read_b[35:18] : read_b[17:0];
  assign {DOA17, DOA16, DOA15, DOA14, DOA13, DOA12, DOA11, DOA10, DOA9, DOA8, DOA7, DOA6, DOA5, DOA4, DOA3, DOA2, DOA1,
          DOA0} = out_a;
  assign {DOB17, DOB16, DOB15, DOB14, DOB13, DOB12, DOB11, DOB10, DOB9, DOB8, DOB7, DOB6, DOB5, DOB4, DOB3, DOB2, DOB1,
          DOB0} = out_b;
endmodule
