// Package vision finds out what is to be seen in clips: at the edge and in the lab
// alike, so that it makes no difference where a clip is looked at.
//
// A Detector streams a clip into ffmpeg, which decodes it, picks the frames
// that are looked at and scales them to what the model wants, and shows these as they
// come to transferlab-vision, the worker process that runs the model with OpenCV
// (package transferlab-vision beside this one). Decoding and looking overlap. Neither
// OpenCV nor C is in the process that uses this package: what a broken clip or
// model does to ffmpeg or OpenCV ends as the error of that clip.
//
// # Which frames
//
// Sample k of a clip is the frame on show at time k/rate of it. The results of
// equal bytes with equal settings and programs are equal, to the bit: scores and boxes
// are rounded to four decimals, and nothing depends on time or the number of
// threads.
//
// # Models
//
// A model is a name. Its files are in the first of the directories that has
//
//	NAME/       with model.onnx, or model.cfg and model.weights, or model.xml
//	NAME.onnx, or NAME.cfg and NAME.weights, or NAME.xml
//
// with NAME.json (or model.json) beside it where the files do not say enough:
//
//	{
//	  "kind": "nanodet",            // or yolov5, yolov8, darknet, haar; usually seen from the files
//	  "classes": ["person", …],     // or NAME.names, one a line; COCO's if the model has 80
//	  "width": 416, "height": 416,  // if the file leaves them open
//	  "fit": "stretch",             // or letterbox
//	  "order": "bgr", "mean": [103.53, 116.28, 123.675], "scale": [0.01745, 0.01745, 0.01745],
//	  "threshold": 0.45, "overlap": 0.5
//	}
//
// Always there: `hog`, people on their feet; with Debian's opencv-data `haar-face` and
// `haar-body`. The model that is used if none is asked for is `nanodet` where there is one, else
// `hog`.
//
// # Limits
//
// A clip may have schemas.MaxClipBytes, 8192 × 4096 pixels and Options.MaxLength.
// ffmpeg gets the clip by a pipe and may open nothing else. An MP4 file whose index is at
// its end cannot be read from a pipe: it goes through a temporary file that has no
// name.
package vision
