#ifndef TRANSFERLAB_VISION_OPENCV_H
#define TRANSFERLAB_VISION_OPENCV_H

#ifdef __cplusplus
extern "C" {
#endif

struct vision_box {
	int x, y, w, h; /* pixels */
	double score;   /* 0 to 1 */
};

void vision_last_words(void);
void vision_threads(int n);

/* A detector, or null and the reason. */
void *vision_hog(char *fault, int size);
void *vision_cascade(const char *xml, int length, char *fault, int size);
void vision_close(void *detector);

/* The number of boxes, best first, of a picture of 3 bytes a pixel (red, green, blue), or -1 and the
   reason. */
int vision_detect(void *detector, unsigned char *pixels, int width, int height,
	struct vision_box *boxes, int most, char *fault, int size);

#ifdef __cplusplus
}
#endif
#endif
