// Makes what the tests compare with, by TensorFlow.js itself:
//
//   tiny.json, tiny.bin   a graph model with every operation that Convert supports
//   tiny.tfjs.json        its outputs for the input of input()
//   nanodet.tfjs.json     every 97th number of NanoDet-g's outputs, if its folder is given
//
// In a folder with @tensorflow/tfjs 4.22.0 installed:
//   NODE_PATH=node_modules node …/testdata/tfjs.js [folder with nanodet.json and nanodet.bin]
const fs = require('fs');
const path = require('path');
const tf = require('@tensorflow/tfjs');

// The same as input() in the Go tests: xorshift32, -2 to 2.
function input(n) {
  const x = new Float32Array(n);
  let s = 2463534242;
  for (let i = 0; i < n; i++) {
    s ^= s << 13; s >>>= 0;
    s ^= s >>> 17;
    s ^= s << 5; s >>>= 0;
    x[i] = (s >>> 8) / 16777216 * 4 - 2;
  }
  return x;
}

function half(v) { // of numbers that halves have exactly
  if (v === 0) return 0;
  if (v === -Infinity) return 0xfc00;
  const e = Math.floor(Math.log2(Math.abs(v)));
  return (v < 0 ? 0x8000 : 0) | (e + 15) << 10 | (Math.abs(v) / 2 ** e - 1) * 1024;
}

const nodes = [], weights = [], bytes = [];
let seed = 0;

function node(op, name, input, attr = {}) {
  nodes.push({ name, op, input, attr });
  return name;
}
function ints(name, shape, values) {
  weights.push({ name, shape, dtype: 'int32' });
  bytes.push(Buffer.from(new Int32Array(values).buffer));
  return node('Const', name, [], { dtype: { type: 'DT_INT32' } });
}
function floats(name, shape, { values, half: asHalf = true } = {}) {
  const n = shape.reduce((a, b) => a * b, 1);
  values ??= Array.from({ length: n }, () => ((seed += 7919) % 61 - 30) / 64);
  weights.push({ name, shape, dtype: 'float32', ...(asHalf ? { quantization: { dtype: 'float16', original_dtype: 'float32' } } : {}) });
  bytes.push(Buffer.from((asHalf ? new Uint16Array(values.map(half)) : new Float32Array(values)).buffer));
  return node('Const', name, [], { dtype: { type: 'DT_FLOAT' } });
}
const s = (v) => ({ s: Buffer.from(v).toString('base64') });
const list = (...v) => ({ list: { i: v.map(String) } });
const float = { T: { type: 'DT_FLOAT' } };
const shape = (...d) => ({ dim: d.map((size) => ({ size: String(size) })) });
const windowed = (strides) => ({ ...float, padding: s('VALID'), data_format: s('NHWC'), strides: list(1, strides, strides, 1) });
const conv = (name, input, kernel, strides, dilation) =>
  node('Conv2D', name, [input, kernel], { ...windowed(strides), dilations: list(1, dilation, dilation, 1) });

ints('toNHWC', [4], [0, 2, 3, 1]);
ints('toNCHW', [4], [0, 3, 1, 2]);
ints('by1', [4, 2], [0, 0, 0, 0, 1, 1, 1, 1]);
ints('by2and1', [4, 2], [0, 0, 2, 1, 2, 2, 0, 0]);
ints('axis1', [], [1]);
ints('last', [], [-1]);
floats('lowest', [], { values: [-Infinity] });

node('Placeholder', 'x', [], { dtype: { type: 'DT_FLOAT' }, shape: { shape: shape(1, 3, 16, 20) } });
// As exporters write it: NCHW between NHWC operations.
node('Pad', 'pad', ['x', 'by1']);
node('Transpose', 'pad/t', ['pad', 'toNHWC']);
conv('conv', 'pad/t', floats('conv/w', [3, 3, 3, 4]), 2, 1);
node('Add', 'conv/b', ['conv', floats('bias', [4])], float);
node('Transpose', 'conv/t', ['conv/b', 'toNCHW']);
node('LeakyRelu', 'leaky', ['conv/t'], { alpha: { f: 0.1 } }); // 1, 4, 8, 10
node('PadV2', 'lower', ['leaky', 'by1', 'lowest']);
node('Transpose', 'lower/t', ['lower', 'toNHWC']);
node('MaxPool', 'pool', ['lower/t'], { ...windowed(2), ksize: list(1, 3, 3, 1) }); // 1, 4, 5, 4
node('ResizeBilinear', 'up', ['pool', ints('double', [2], [8, 10])], { align_corners: { b: false }, half_pixel_centers: { b: true } });
// A tensor that lies in memory as NHWC meets one that lies as NCHW, both ways.
node('Reshape', 'rows', ['up', ints('rows/shape', [4], [1, 8, 10, 4])]);
node('Transpose', 'leaky/t', ['leaky', 'toNHWC']);
node('Add', 'mixed', ['rows', 'leaky/t'], float);
node('Add', 'mixed2', ['leaky/t', 'mixed'], float);
node('Pad', 'uneven', ['mixed2', 'by2and1']);
conv('wide', 'uneven', floats('wide/w', [3, 2, 4, 8], { half: false }), 1, 2); // 1, 7, 12, 8
node('AddV2', 'wide/b', [floats('number', [], { half: false }), 'wide'], float);
node('Sigmoid', 'sigmoid', ['wide/b']);
node('ConcatV2', 'joined', ['wide/b', 'sigmoid', 'wide', 'last'], { N: { i: '3' } }); // 1, 7, 12, 24
node('ResizeBilinear', 'down', ['joined', ints('half', [2], [7, 6])], { align_corners: { b: false }, half_pixel_centers: { b: true } });
node('Transpose', 'down/t', ['down', 'toNCHW']);
node('SplitV', 'parts', ['down/t', ints('sizes', [2], [20, 4]), 'axis1'], { num_split: { i: '2' } });
node('SparseToDense', 'more', [ints('more/at', [1], [1]), ints('more/size', [1], [3]), ints('more/values', [1], [4]), ints('more/default', [], [0])]);
node('AddV2', 'flat/shape', [ints('flat', [3], [1, 16, -1]), 'more'], { T: { type: 'DT_INT32' } });
node('Reshape', 'flat/r', ['parts', 'flat/shape']); // 1, 20, 42
node('Transpose', 'flat/t', ['flat/r', ints('swap', [3], [0, 2, 1])]);
node('Identity', 'first', ['flat/t']);
node('Identity', 'second', ['parts:1']);
node('Transpose', 'third', ['pool', 'toNCHW']);

async function run(dir, name, graph, weightData, shape, outputs, every) {
  const model = await tf.loadGraphModel({ load: async () => ({
    modelTopology: graph.modelTopology, format: graph.format, signature: graph.signature,
    weightSpecs: graph.weightsManifest.flatMap((g) => g.weights), weightData,
  }) });
  const n = shape.reduce((a, b) => a * b, 1);
  const results = model.execute({ [Object.keys(graph.signature.inputs)[0].split(':')[0]]: tf.tensor(input(n), shape) }, Object.keys(outputs));
  const out = {};
  Object.values(outputs).forEach((label, i) => {
    out[label] = { shape: results[i].shape, values: Array.from(results[i].dataSync()).filter((_, k) => k % every === 0).map((v) => Number(v.toPrecision(8))) };
  });
  fs.writeFileSync(path.join(dir, name), JSON.stringify(out) + '\n');
}

async function main() {
  await tf.setBackend('cpu');
  const tensor = (name, ...d) => ({ name: name + ':0', dtype: 'DT_FLOAT', tensorShape: shape(...d) });
  const graph = {
    format: 'graph-model',
    signature: {
      inputs: { x: tensor('x', 1, 3, 16, 20) },
      outputs: { third: tensor('third', 1, 4, 4, 5), second: tensor('second', 1, 4, 7, 6), first: tensor('first', 1, 42, 20) },
    },
    modelTopology: { node: nodes, versions: { producer: 1, minConsumer: 1 } },
    weightsManifest: [{ paths: ['tiny.bin'], weights }],
  };
  const data = Buffer.concat(bytes);
  fs.writeFileSync(path.join(__dirname, 'tiny.json'), JSON.stringify(graph) + '\n');
  fs.writeFileSync(path.join(__dirname, 'tiny.bin'), data);
  const buffer = (b) => b.buffer.slice(b.byteOffset, b.byteOffset + b.length);
  await run(__dirname, 'tiny.tfjs.json', graph, buffer(data), [1, 3, 16, 20], { first: 'one', second: 'second', third: 'third' }, 1);
  const dir = process.argv[2];
  if (dir) {
    await run(__dirname, 'nanodet.tfjs.json', JSON.parse(fs.readFileSync(path.join(dir, 'nanodet.json'))), buffer(fs.readFileSync(path.join(dir, 'nanodet.bin'))), [1, 3, 416, 416],
      { Identity: 'cls8', Identity_3: 'reg8', Identity_1: 'cls16', Identity_4: 'reg16', Identity_2: 'cls32', Identity_5: 'reg32' }, 97);
  }
}
main();
