// Package motion tells when something moves: in pictures, without OpenCV, or by
// a sensor on a GPIO line.
//
// Pictures are small and gray, one byte a pixel. [Frame] compares each with a
// running average of those before, [Mixture] keeps several likely values for
// each pixel, so that a waving branch or a flickering lamp becomes background.
// Both count a change only where it covers an area of its own: what
// differs in scattered pixels is noise. The first pictures only teach (a camera
// sets its exposure then), and a change of nearly the whole picture is light
// switched on or a cut, not motion: the background is learnt anew.
package motion
