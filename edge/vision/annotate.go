package vision

import (
	"bytes"
	"context"
	"fmt"
	"hash/fnv"
	"image"
	"image/color"
	"image/draw"
	"image/jpeg"
	"os"

	"github.com/transferlab/transferlab/schemas"
)

// maxAnnotated is the longest side of an annotated frame in pixels.
const maxAnnotated = 1920

// annotate draws the boxes of the frame with the highest sum of scores.
func (d *Detector) annotate(ctx context.Context, copy *os.File, clip *schemas.Clip, out *Outcome) ([]byte, error) {
	best, most := 0, 0.
	for i, f := range out.Frames {
		sum := 0.
		for _, o := range f.Objects {
			sum += o.Score
		}
		if sum > most {
			best, most = i, sum
		}
	}
	p, err := d.fullSize(ctx, copy, clip, out.Sample, best)
	if err != nil {
		return nil, fmt.Errorf("annotate: %w", err)
	}
	img := image.NewRGBA(image.Rect(0, 0, p.width, p.height))
	for i := 0; i < p.width*p.height; i++ {
		img.Pix[4*i], img.Pix[4*i+1], img.Pix[4*i+2], img.Pix[4*i+3] = p.pix[3*i], p.pix[3*i+1], p.pix[3*i+2], 255
	}
	for _, o := range out.Frames[best].Objects {
		box(img, o)
	}
	var b bytes.Buffer
	if err := jpeg.Encode(&b, img, &jpeg.Options{Quality: 85}); err != nil {
		return nil, fmt.Errorf("annotate: %w", err)
	}
	return b.Bytes(), nil
}

// box draws an object's box, in a colour that is its label's.
func box(img *image.RGBA, o schemas.Object) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(o.Label))
	hue := h.Sum32()
	ink := image.NewUniform(color.RGBA{R: 128 + byte(hue)/2, G: 128 + byte(hue>>8)/2, B: byte(hue >> 16), A: 255})
	w, ht := float64(img.Rect.Dx()), float64(img.Rect.Dy())
	r := image.Rect(int(o.Box.X*w), int(o.Box.Y*ht), int((o.Box.X+o.Box.W)*w), int((o.Box.Y+o.Box.H)*ht))
	line := max(2, img.Rect.Dx()/400)
	for _, side := range []image.Rectangle{
		image.Rect(r.Min.X, r.Min.Y, r.Max.X, r.Min.Y+line),
		image.Rect(r.Min.X, r.Max.Y-line, r.Max.X, r.Max.Y),
		image.Rect(r.Min.X, r.Min.Y, r.Min.X+line, r.Max.Y),
		image.Rect(r.Max.X-line, r.Min.Y, r.Max.X, r.Max.Y),
	} {
		draw.Draw(img, side.Intersect(img.Rect), ink, image.Point{}, draw.Src)
	}
}
